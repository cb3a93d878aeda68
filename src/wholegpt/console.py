"""The terminal: results on standard output, notes and progress on standard error."""

import contextlib
import io
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar, runtime_checkable

from wholegpt.errors import BIDIRECTIONAL

T = TypeVar("T")

LINE_INTERVAL_SECONDS = 10.0
"""How often progress is written as a line if there is no terminal for a bar."""
_CONTROL = re.compile(rf"[\x00-\x08\x0b-\x1f\x7f-\x9f{BIDIRECTIONAL}]")
"""Control characters that a terminal could interpret, except tab and line end."""


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
    """Write a line to standard error; a closed pipe or a full disk is ignored."""
    with contextlib.suppress(OSError, ValueError):
        print(visible(line) if sys.stderr.isatty() else line, file=sys.stderr, flush=True)


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

    def advance(self, amount: int = 1, detail: str = "") -> None:
        """Count ``amount`` of the total as done and show ``detail`` beside it."""
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

    def note(self, message: str) -> None:
        """Show one line to the user."""
        if not self.quiet:
            write_error(message)

    def warn(self, message: str) -> None:
        """Show one line that the user should not miss, even if quiet."""
        write_error(f"warning: {message}")

    @contextlib.contextmanager
    def working(self, description: str) -> Iterator[None]:
        """Show that work of unknown length is running: a spinner on a terminal, otherwise a line."""
        if self.quiet or not sys.stderr.isatty():
            self.note(description)
            yield
            return
        from rich.console import Console as RichConsole
        from rich.text import Text

        with RichConsole(stderr=True).status(Text(visible(description))):
            yield

    @contextlib.contextmanager
    def progress(self, description: str, total: int, done: int = 0) -> Iterator[Progress]:
        """Show a bar with the remaining time on a terminal, otherwise a line every ten seconds."""
        if self.quiet:
            yield Silent()
        elif sys.stderr.isatty():
            with _bar(description, total, done) as progress:
                yield progress
        else:
            yield _Lines(description, total, done)

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


class _Rate:
    def __init__(self, progress: Progress) -> None:
        self.progress, self.done, self.started = progress, 0, time.monotonic()

    def advance(self, amount: int = 1, detail: str = "") -> None:
        self.done += amount
        rate = self.done / 1e6 / max(time.monotonic() - self.started, 1e-3)
        self.progress.advance(amount, f"{rate:.1f} MB/s")


class Silent:
    """No progress bar."""

    def advance(self, amount: int = 1, detail: str = "") -> None:
        """Show nothing."""


class _Lines:
    def __init__(self, description: str, total: int, done: int) -> None:
        self.description, self.total, self.done, self.first = description, total, done, done
        self.started = self.shown = time.monotonic()

    def advance(self, amount: int = 1, detail: str = "") -> None:
        self.done += amount
        now = time.monotonic()
        if now - self.shown < LINE_INTERVAL_SECONDS:
            return
        self.shown = now
        left = (now - self.started) * (self.total - self.done) / max(self.done - self.first, 1e-9)
        share = self.done / self.total if self.total else 1.0
        write_error(f"{self.description} {share:4.0%} {detail}  {left:.0f} s left")


class _Bar:
    def __init__(self, bar: object, task: object) -> None:
        self.bar, self.task = bar, task

    def advance(self, amount: int = 1, detail: str = "") -> None:
        self.bar.update(self.task, advance=amount, detail=detail)  # pyright: ignore[reportAttributeAccessIssue]


@contextlib.contextmanager
def _bar(description: str, total: int, done: int) -> Iterator[Progress]:
    from rich.console import Console as RichConsole
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=RichConsole(stderr=True)) as bar:
        yield _Bar(bar, bar.add_task(visible(description), total=total, completed=done, detail=""))
