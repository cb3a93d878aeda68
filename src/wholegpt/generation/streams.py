"""The text of one request as it is generated, for consumers in any thread or asyncio task."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from functools import partial
from typing import Any

from wholegpt.generation.results import Completion


class CompletionStream:
    """The pieces of one request's text, and its completion.

    Iterate over the stream, with ``for`` or ``async for``, to get the pieces as they are generated; joined they are the
    completion's text. ``result()``, or ``await stream``, waits for the completion. If the request fails, all of these
    raise its error; iteration raises it after the last piece.

    Any number of threads and tasks may read a stream. Each iteration starts at the first piece. However slowly it is
    read, a stream keeps at most one piece for each token, and one more that ends the text.
    """

    def __init__(self, cancel: Callable[["CompletionStream"], None]) -> None:
        """``cancel`` is called to cancel the request."""
        self._cancel = cancel
        self._pieces: list[str] = []
        self._completion: Completion | None = None
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._watchers: list[Callable[[], None]] = []
        """Each is called once, after the next change."""

    @property
    def done(self) -> bool:
        """Whether the request has ended."""
        return self._completion is not None or self._error is not None

    def cancel(self) -> None:
        """Cancel the request, from any thread. Returns at once; does nothing if the request has ended.

        The completion follows within a step, with the text so far and the ``finish_reason`` ``cancelled``.
        """
        self._cancel(self)

    def result(self, timeout: float | None = None) -> Completion:
        """Wait for the completion, at most ``timeout`` seconds.

        Raises the error of the request, or ``TimeoutError`` if the request has not ended in time.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self.done, timeout):
                raise TimeoutError(f"the request has not ended within {timeout:g} seconds")
        return self._outcome()

    def __iter__(self) -> Iterator[str]:
        position = 0
        while pieces := self._wait_for_pieces(position):
            yield from pieces
            position += len(pieces)
        self._outcome()

    async def __aiter__(self) -> AsyncIterator[str]:
        position = 0
        while pieces := await self._pieces_after(position):
            for piece in pieces:
                yield piece
            position += len(pieces)
        self._outcome()

    def __await__(self) -> Generator[Any, None, Completion]:
        return self._completed().__await__()

    def push(self, piece: str) -> None:
        """Add a piece of text. Called by the scheduler."""
        if piece:
            with self._changed:
                self._pieces.append(piece)
                self._notify()

    def finish(self, completion: Completion) -> None:
        """End the stream. Called by the scheduler; only the first of ``finish`` and ``fail`` counts."""
        with self._changed:
            if not self.done:
                self._completion = completion
                self._notify()

    def fail(self, error: BaseException) -> None:
        """End the stream with an error. Called by the scheduler."""
        with self._changed:
            if not self.done:
                self._error = error
                self._notify()

    def _outcome(self) -> Completion:
        if self._error is not None:
            raise self._error
        assert self._completion is not None
        return self._completion

    def _notify(self) -> None:
        """Wake all consumers. The watchers are functions of this module that do not block, so no consumer can stop the
        engine.
        """
        self._changed.notify_all()
        watchers, self._watchers = self._watchers, []
        for watcher in watchers:
            watcher()

    def _has_news(self, position: int) -> bool:
        return self.done or len(self._pieces) > position

    def _wait_for_pieces(self, position: int) -> list[str]:
        """Wait for the pieces from ``position`` on and return them; an empty list if the text ends there."""
        with self._changed:
            self._changed.wait_for(partial(self._has_news, position))
            return self._pieces[position:]

    async def _pieces_after(self, position: int) -> list[str]:
        await self._until(partial(self._has_news, position))
        with self._changed:
            return self._pieces[position:]

    async def _completed(self) -> Completion:
        await self._until(lambda: self.done)
        return self._outcome()

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Wait in an asyncio task until ``condition`` holds, without blocking its loop."""
        loop = asyncio.get_running_loop()
        while True:
            changed: asyncio.Future[None] = loop.create_future()
            watcher = partial(_wake, loop, changed)
            with self._changed:
                if condition():
                    return
                self._watchers.append(watcher)
            try:
                await changed
            finally:
                with self._changed:
                    if watcher in self._watchers:  # the task was cancelled
                        self._watchers.remove(watcher)


def _wake(loop: asyncio.AbstractEventLoop, changed: "asyncio.Future[None]") -> None:
    """Complete a future of a loop that runs in another thread."""
    try:
        loop.call_soon_threadsafe(lambda: changed.done() or changed.set_result(None))
    except RuntimeError:  # the loop is closed, so nobody waits
        pass
