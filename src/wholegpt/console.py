"""What the program says while it works: notes and progress bars, on standard error."""

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar, runtime_checkable

T = TypeVar("T")

LINE_INTERVAL_SECONDS = 10.0
"""How often progress is written as a line where there is no terminal to draw a bar on."""


@runtime_checkable
class Progress(Protocol):
    """A running progress bar."""

    def advance(self, amount: int = 1, detail: str = "") -> None:
        """Count ``amount`` of the total as done and show ``detail`` beside it."""
        ...


def visible(text: str) -> str:
    """A text that a model wrote, for people: where there is nothing to see, what says so."""
    if not text:
        return "(nothing: the model ended the text at once)"
    return text if text.strip() else f"(white space alone: {text[:40]!r})"


class Console:
    """Notes and progress on standard error, or nothing when quiet."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet

    def note(self, message: str) -> None:
        """One line for the user."""
        if not self.quiet:
            _print(message)

    def warn(self, message: str) -> None:
        """One line that the user should not miss, shown even when quiet."""
        _print(f"warning: {message}")

    @contextlib.contextmanager
    def working(self, description: str) -> Iterator[None]:
        """Says what goes on while its length is not known: a spinner on a terminal, a line elsewhere."""
        if self.quiet or not sys.stderr.isatty():
            self.note(description)
            yield
            return
        from rich.console import Console as RichConsole

        with RichConsole(stderr=True).status(description):
            yield

    @contextlib.contextmanager
    def progress(self, description: str, total: int, done: int = 0) -> Iterator[Progress]:
        """A bar with the time left on a terminal, a line every ten seconds elsewhere."""
        if self.quiet:
            yield Silent()
        elif sys.stderr.isatty():
            with _bar(description, total, done) as progress:
                yield progress
        else:
            yield _Lines(description, total, done)

    def track(self, description: str, steps: Sequence[T]) -> Iterator[T]:
        """``steps``, with ``progress``."""
        with self.progress(description, len(steps)) as progress:
            for step in steps:
                yield step
                progress.advance()

    @contextlib.contextmanager
    def bytes_progress(self, description: str, total: int) -> Iterator[Progress]:
        """``progress`` over bytes, with how many megabytes go by in a second."""
        with self.progress(description, total) as progress:
            yield _Rate(progress)


class _Rate:
    def __init__(self, progress: Progress) -> None:
        self.progress, self.done, self.started = progress, 0, time.monotonic()

    def advance(self, amount: int = 1, detail: str = "") -> None:
        self.done += amount
        rate = self.done / 1e6 / max(time.monotonic() - self.started, 1e-3)
        self.progress.advance(amount, f"{rate:.1f} MB/s")


def _print(line: str) -> None:
    try:
        print(line, file=sys.stderr, flush=True)
    except BrokenPipeError:
        pass  # whoever read the notes went away; the work goes on


class Silent:
    """No progress bar."""

    def advance(self, amount: int = 1, detail: str = "") -> None:
        """Shows nothing."""


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
        _print(f"{self.description} {share:4.0%} {detail}  {left:.0f} s left")


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
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[detail]}"),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=RichConsole(stderr=True)) as bar:
        yield _Bar(bar, bar.add_task(description, total=total, completed=done, detail=""))
