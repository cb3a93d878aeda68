"""The terminal: results on standard output, notes and progress on standard error."""

import contextlib
import io
import math
import os
import re
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from wholegpt.errors import BIDIRECTIONAL

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.console import ConsoleOptions

T = TypeVar("T")

LINE_INTERVAL_SECONDS = 10.0
"""How often progress is written as a line if there is no terminal for a bar."""
REDRAWS_PER_SECOND = 8
NARROWEST_BAR, WIDEST_BAR = 8, 40
"""Columns."""
BETWEEN = "  "
"""Separates the parts of a line of progress."""
_screens: list["RichConsole"] = []
"""The terminals on which a bar is drawn; the last one is in use."""
_CONTROL = re.compile(rf"[\x00-\x08\x0b-\x1f\x7f-\x9f{BIDIRECTIONAL}]")
"""Control characters that a terminal could interpret, except tab and line end."""


def command_line() -> list[str]:
    """Return the command line of this process, with the name of the program instead of its path."""
    program = Path(sys.argv[0]).name
    return ["wholegpt" if program == "__main__.py" else program, *sys.argv[1:]]


def visible(text: str) -> str:
    """Return ``text`` with control characters escaped, so that a terminal does not interpret them."""
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


def write_output(text: str, end: str = "\n", exact: bool = False) -> None:
    """Write a result to standard output: ``visible`` on a terminal unless ``exact``, otherwise unchanged.

    Raises ``OSError`` naming standard output if it cannot be written.
    """
    _write((visible(text) if sys.stdout.isatty() and not exact else text) + end)


def write_styled(parts: Sequence[tuple[str, str]], separator: str = "", end: str = "\n") -> None:
    """Write parts of a text, each in a style of ``rich``; without colors, ``separator`` separates them."""
    from rich.console import Console as RichConsole
    from rich.text import Text

    screen = RichConsole(soft_wrap=True, highlight=False)
    if not screen.is_terminal:
        write_output(separator.join(text for text, _ in parts), end)
        return
    between = separator if screen.no_color or screen.color_system is None else ""
    with screen.capture() as drawn:
        screen.print(Text(between).join(Text(visible(text), style) for text, style in parts), end=end)
    _write(drawn.get())


def write_error(line: str) -> None:
    """Write a line to standard error, above a running bar; a closed pipe or a full disk is ignored."""
    with contextlib.suppress(OSError, ValueError):
        if _screens:
            from rich.text import Text

            _screens[-1].print(Text(visible(line)), soft_wrap=True)
        else:
            print(_wrapped(visible(line)) if sys.stderr.isatty() else line, file=sys.stderr, flush=True)


def _wrapped(text: str) -> str:
    """Return lines that are broken between words at the width of the terminal. Longer words stay whole, and so do
    commands in backquotes, which people copy.

    In a table, lines continue below the last column.
    """
    try:
        width = os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):  # no terminal after all
        return text
    lines: list[str] = []
    for line in text.split("\n"):
        columns = re.match(r"\s*\S+(?: \S+)*  +", line)
        indent = " " * len(columns[0]) if columns and len(columns[0]) < width / 2 else ""
        joined = re.sub("`[^`]*`", lambda command: command[0].replace(" ", "\0"), line)
        lines += textwrap.wrap(
            joined,
            width,
            subsequent_indent=indent,
            expand_tabs=False,
            replace_whitespace=False,
            break_long_words=False,
            break_on_hyphens=False,
        ) or [""]
    return "\n".join(lines).replace("\0", " ")


def open_standard_streams() -> None:
    """Replace closed standard streams by the null device, before another file gets their number.

    Characters that the encoding of a stream lacks are written as escapes.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115 (stays open)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def discard_output() -> None:
    """Send the buffer of standard output to the null device, so that Python does not fail on it at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _write(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), "standard output") from None


@runtime_checkable
class Progress(Protocol):
    """A running progress bar."""

    def advance(self, amount: int = 1, *details: str) -> None:
        """Count ``amount`` of the total as done, and show ``details`` beside it, the most important first."""
        ...


def sample_for_people(text: str) -> str:
    """Return a generated text, or a note if it is empty or white space only."""
    if not text:
        return "(empty: the model ended the text at once)"
    return text if text.strip() else f"(white space only: {text[:40]!r})"


class Console:
    """Notes and progress on standard error; nothing if quiet."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet

    def note(self, message: str, shorter: str = "") -> None:
        """Show one line to the user, or ``shorter`` where ``message`` does not fit beside a running bar."""
        if not self.quiet:
            write_error(shorter if shorter and _screens and len(message) > _screens[-1].width else message)

    def warn(self, message: str) -> None:
        """Show one line that the user should not miss, even if quiet."""
        write_error(f"warning: {message}")

    @contextlib.contextmanager
    def working(self, description: str) -> Iterator[None]:
        """Show that work of unknown length is running: a spinner on a terminal, otherwise a line."""
        if self.quiet or not _can_draw():
            self.note(description)
            yield
            return
        with _live(_Spinner(description), transient=True):
            yield

    @contextlib.contextmanager
    def progress(
        self, description: str, total: int, done: int = 0, unit: str = "", deadline: float = math.inf
    ) -> Iterator[Progress]:
        """Show a bar with the remaining time on a terminal, otherwise a line every ten seconds.

        What is done is shown as a count of ``unit``, or as a percentage if it has none. The work ends at the latest at
        the ``deadline``, a time of ``time.monotonic``.
        """
        if self.quiet:
            yield Silent()
        elif _can_draw():
            bar = _Bar(description, total, done, unit, deadline)
            with _live(bar):
                yield bar
        else:
            yield _Lines(description, total, done, unit, deadline)

    def track(self, description: str, steps: Sequence[T]) -> Iterator[T]:
        """Yield ``steps`` with ``progress``."""
        with self.progress(description, len(steps)) as progress:
            for step in steps:
                yield step
                progress.advance()

    @contextlib.contextmanager
    def bytes_progress(self, description: str, total: int) -> Iterator[Progress]:
        """Show ``progress`` over bytes, with the megabytes per second."""
        with self.progress(description, total) as progress:
            yield _Rate(progress)


QUIET = Console(quiet=True)
"""Shows only warnings."""


class _Rate:
    def __init__(self, progress: Progress) -> None:
        self.progress, self.done, self.started = progress, 0, time.monotonic()

    def advance(self, amount: int = 1, *details: str) -> None:
        self.done += amount
        rate = self.done / 1e6 / max(time.monotonic() - self.started, 1e-3)
        self.progress.advance(amount, f"{rate:.1f} MB/s")


class Silent:
    """No progress bar."""

    def advance(self, amount: int = 1, *details: str) -> None:
        """Show nothing."""


class _Counter:
    """What is done of a total, and how long the rest will take."""

    def __init__(self, description: str, total: int, done: int, unit: str, deadline: float) -> None:
        self.description, self.total, self.done, self.unit = visible(description), total, done, unit
        self.first, self.started, self.deadline = done, time.monotonic(), deadline
        self.details: tuple[str, ...] = ()

    def advance(self, amount: int = 1, *details: str) -> None:
        self.done += amount
        self.details = tuple(map(visible, details))

    def count(self, labeled: bool = True) -> str:
        """Return "step 12/200", or a percentage; an empty string if the total is unknown."""
        if not self.total:
            return ""
        if not self.unit:
            return f"{self.done / self.total:4.0%}"
        return f"{self.unit} " * labeled + f"{self.done:>{len(str(self.total))}}/{self.total}"

    def time(self, labeled: bool = True) -> str:
        """Return the time left at the mean pace so far, at most until the deadline; at the end, the time it took."""
        done, passed = self.done - self.first, time.monotonic() - self.started
        if done <= 0 or not self.total:
            return ""
        if self.done >= self.total:
            return "in " * labeled + clock(passed)
        left = min(passed * (self.total - self.done) / done, max(0.0, self.deadline - time.monotonic()))
        return clock(left) + " left" * labeled


def clock(seconds: float) -> str:
    """Return minutes and seconds, and hours if there are any, as in 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class _Lines(_Counter):
    def __init__(self, description: str, total: int, done: int, unit: str, deadline: float) -> None:
        super().__init__(description, total, done, unit, deadline)
        self.shown = self.started

    def advance(self, amount: int = 1, *details: str) -> None:
        super().advance(amount, *details)
        if time.monotonic() - self.shown < LINE_INTERVAL_SECONDS:
            return
        self.shown = time.monotonic()
        parts = (self.description, self.count(), *self.details, self.time())
        write_error(BETWEEN.join(filter(None, parts)))


class _Bar(_Counter):
    """A bar of one line that is never wider than the terminal: the least important parts are left out."""

    def __init__(self, description: str, total: int, done: int, unit: str, deadline: float) -> None:
        super().__init__(description, total, done, unit, deadline)
        self._widths: dict[tuple[bool, int], int] = {}
        """The greatest width that each part had. It keeps it, so that the line does not jump."""

    def __rich_console__(self, console: "RichConsole", options: "ConsoleOptions") -> Iterator[Any]:
        from rich.progress_bar import ProgressBar

        parts = self.numbers(options.max_width)
        free = options.max_width - len(BETWEEN.join(["", *parts]))
        columns: list[Any] = [BETWEEN.join(parts)]
        named = len(self.description) <= free
        width = min(free - named * len(self.description + BETWEEN), WIDEST_BAR)
        if width >= NARROWEST_BAR:
            columns.insert(0, ProgressBar(self.total or None, self.done, width))
        if named:
            columns.insert(0, self.description)
        yield _one_line(columns)

    def numbers(self, width: int) -> list[str]:
        """Return the parts that fit into ``width`` columns, the most important first."""
        parts = self._padded(labeled=True)
        if len(BETWEEN.join(parts[:3])) > width:
            parts = self._padded(labeled=False)
        fitting = list[str]()
        for part in parts:
            if part and len(BETWEEN.join([*fitting, part])) <= width:
                fitting.append(part)
        return fitting

    def _padded(self, labeled: bool) -> list[str]:
        parts = [self.count(labeled), *self.details[:1], self.time(labeled), *self.details[1:]]
        for number, part in enumerate(parts):
            place = (labeled, number)
            self._widths[place] = max(len(part), self._widths.get(place, 0))
        return [part.ljust(self._widths[labeled, number]) for number, part in enumerate(parts)]


class _Spinner:
    """A sign of work, and what it is."""

    def __init__(self, description: str) -> None:
        from rich.spinner import Spinner

        self.columns = [Spinner("dots"), visible(description)]

    def __rich_console__(self, console: "RichConsole", options: "ConsoleOptions") -> Iterator[Any]:
        yield _one_line(self.columns)


def _one_line(columns: Sequence[Any]) -> Any:
    """Return texts and other columns on one line, which is cut at the width of the terminal."""
    from rich.table import Column, Table
    from rich.text import Text

    line = Table.grid(
        *(Column(no_wrap=True, overflow="crop") for _ in columns), padding=(0, len(BETWEEN), 0, 0)
    )
    line.add_row(*(Text(one) if isinstance(one, str) else one for one in columns))
    return line


def _can_draw() -> bool:
    """Return whether standard error is a terminal that can redraw a line."""
    return sys.stderr.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")


@contextlib.contextmanager
def _live(shown: Any, transient: bool = False) -> Iterator[None]:
    """Draw something in place while the block runs; notes appear above it."""
    from rich.console import Console as RichConsole
    from rich.live import Live

    screen = _screens[-1] if _screens else RichConsole(stderr=True, highlight=False)
    with Live(
        shown,
        console=screen,
        refresh_per_second=REDRAWS_PER_SECOND,
        transient=transient,
        redirect_stdout=False,  # results may go to a file
    ):
        _screens.append(screen)
        try:
            yield
        finally:
            _screens.pop()
