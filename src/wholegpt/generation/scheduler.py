"""Many requests from many threads over one engine.

Design
    One thread owns the engine. Between two steps it cancels requests and gives free slots to queued ones, in the order
    in which they became ready.
    ``submit`` checks a request on the caller's thread; one that has to be compiled first (a grammar, banned or forced
    texts) goes through a small thread pool instead, and others may overtake it.
    A request is *queued* until it has a slot, then *running*, then done. Its stream is the only thing the caller holds.
    Whatever fails while a request is prepared, or in its own row of the batch, ends that request alone. What the
    engine's ``step`` raises ends all requests and the scheduler.
"""

import atexit
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from types import TracebackType

import torch

from wholegpt.console import QUIET, Console
from wholegpt.errors import ConfigError, QueueFull, SchedulerClosed
from wholegpt.generation.engine import Engine
from wholegpt.generation.memory import plan_slots
from wholegpt.generation.request import GenerationRequest
from wholegpt.generation.results import Completion
from wholegpt.generation.speculation import Drafter
from wholegpt.generation.streams import CompletionStream
from wholegpt.model.interface import CausalLanguageModel
from wholegpt.settings.schema import GenerationConfig
from wholegpt.tokenizers import Tokenizer

ENGINE_THREAD = "wholegpt-engine"
COMPILER_THREADS = "wholegpt-grammar"
"""How the names of the threads begin."""


class Scheduler:
    """Generates for any number of threads and asyncio tasks, many requests at once.

    ``submit`` returns a stream at once. The text of a request does not depend on the others, as for the engine. Use the
    scheduler in a ``with`` block, or call ``close``.

    The model runs in a thread of its own: state that PyTorch keeps for each thread, such as autocast, is not that of
    the caller. Nothing else may use the model's caches, or train it, meanwhile.
    """

    def __init__(
        self,
        model: CausalLanguageModel,
        tokenizer: Tokenizer,
        device: torch.device,
        *,
        slots: int = 32,
        capacity: int = 0,
        max_queued: int = 1024,
        compiler_threads: int = 2,
        console: Console | None = None,
    ) -> None:
        """Allocate the cache and start the engine's thread.

        At most ``slots`` requests run at once, fewer where memory is short, which ``console`` notes. Each has
        ``capacity`` positions for prompt and completion (0: the model's context). At most ``max_queued`` wait;
        a new request waits at least until the next step of the engine.

        Raises ``ConfigError`` for numbers below 1, and if there is no memory for a single slot.
        """
        for name, value in (
            ("slots", slots),
            ("max_queued", max_queued),
            ("compiler_threads", compiler_threads),
        ):
            if value < 1:
                raise ConfigError(f"{name} is {value}; expected at least 1")
        capacity = min(capacity or model.context_length, model.context_length)
        slots = plan_slots(model, slots, capacity, device, console or QUIET)
        self._engine, self._max_queued = Engine(model, tokenizer, device, slots, capacity), max_queued
        self._changed = threading.Condition()
        """Guards the five attributes below. Only the engine's thread waits on it; no other lock is taken under it."""
        self._queued: dict[CompletionStream, Future[None] | None] = {}
        """Each with its compilation, if it has one."""
        self._ready: dict[CompletionStream, GenerationRequest] = {}
        """Those of the queued requests that only wait for a slot."""
        self._cancelling: set[CompletionStream] = set()
        self._closing = False
        self._failure: BaseException | None = None
        self._running: dict[CompletionStream, GenerationRequest] = {}
        """Used by the engine's thread only."""
        self._compilers = ThreadPoolExecutor(compiler_threads, COMPILER_THREADS)
        # A daemon that is joined at exit: a scheduler that was not closed neither keeps the process alive
        # nor is cut off inside native code.
        self._thread = threading.Thread(target=self._serve, name=ENGINE_THREAD, daemon=True)
        atexit.register(self.close)
        self._thread.start()

    def __enter__(self) -> "Scheduler":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def submit(
        self, prompt_ids: Sequence[int], config: GenerationConfig, drafter: Drafter | None = None
    ) -> CompletionStream:
        """Queue a request and return its stream, from any thread, without waiting.

        A prompt or settings that cannot be used are errors of the request: its stream raises them, as ``ConfigError``.
        A ``drafter`` belongs to one request; it is called on the engine's thread.

        Raises ``QueueFull`` while ``max_queued`` requests wait, ``SchedulerClosed`` after ``close`` or after the engine
        failed.
        """
        stream = CompletionStream(self._cancel)
        prepare = partial(self._prepare, stream, list(prompt_ids), config, drafter)
        with self._changed:
            self._check_open()
            if len(self._queued) >= self._max_queued:
                raise QueueFull(
                    f"{len(self._queued):,} requests are queued, which is the limit; try again later"
                )
            if _has_to_compile(config):
                self._queued[stream] = self._compilers.submit(prepare)
                return stream
            self._queued[stream] = None
        prepare()
        return stream

    def close(self) -> None:
        """Cancel all requests and wait for the threads to end: until the current step and compilations are done."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._compilers.shutdown(wait=False, cancel_futures=True)
        self._thread.join()
        self._compilers.shutdown()
        atexit.unregister(self.close)

    def _check_open(self) -> None:
        if self._failure is not None:
            kind = type(self._failure).__name__
            raise SchedulerClosed(
                f"the engine failed with {kind}: {self._failure}; start another scheduler"
            ) from self._failure
        if self._closing:
            raise SchedulerClosed("the scheduler is closed; start another one")

    def _prepare(
        self,
        stream: CompletionStream,
        prompt_ids: list[int],
        config: GenerationConfig,
        drafter: Drafter | None,
    ) -> None:
        """Make a queued request ready for a slot, on the submitting thread or one of the compilers'."""
        try:
            request = self._engine.prepare(prompt_ids, config, stream.push, drafter)
        except BaseException as error:
            with self._changed:
                self._queued.pop(stream, None)
            stream.fail(error)
            if not isinstance(error, Exception):  # Ctrl-C in the submitting thread
                raise
            return
        with self._changed:
            if stream in self._queued:  # not cancelled meanwhile
                self._ready[stream] = request
                self._changed.notify()

    def _cancel(self, stream: CompletionStream) -> None:
        """End a queued request at once; leave a running one to the engine's thread."""
        with self._changed:
            if stream not in self._queued:
                if not stream.done:
                    self._cancelling.add(stream)
                    self._changed.notify()
                return
            compilation = self._queued.pop(stream)
            self._ready.pop(stream, None)
        if compilation is not None:
            compilation.cancel()
        stream.finish(_cancelled())

    def _serve(self) -> None:
        """Run the engine until the scheduler is closed. Runs in the engine's thread, as do the methods below."""
        failure: BaseException | None = None
        try:
            while self._await_work():
                self._admit()
                self._engine.step()
                self._settle_ended()
        except BaseException as error:  # whatever ends this thread has to end the streams
            failure = error
        self._end(failure)

    def _await_work(self) -> bool:
        """Wait until there is something to do, and cancel what is to be cancelled. Return whether to continue."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._cancelling or self._ready or self._running)
            closing = self._closing
            cancelling = set(self._running) if closing else self._cancelling
            self._cancelling = set()
        for stream in cancelling:
            if stream in self._running:
                self._engine.cancel(self._running[stream])
        self._settle_ended()
        return not closing

    def _admit(self) -> None:
        """Give free slots to requests that are ready."""
        with self._changed:
            admitted = list(self._ready.items())[: self._engine.free_slots]
            for stream, _ in admitted:
                del self._ready[stream], self._queued[stream]
        for stream, request in admitted:
            self._running[stream] = request
            self._engine.add(request)

    def _settle_ended(self) -> None:
        """Give the streams of the requests that have ended their completion or error."""
        for stream, request in list(self._running.items()):
            if request.finish_reason:
                del self._running[stream]
                _settle(stream, request)

    def _end(self, failure: BaseException | None) -> None:
        """End whatever has not ended, with the engine's ``failure`` if there is one."""
        with self._changed:
            self._closing, self._failure = True, failure
            queued = list(self._queued)
            self._queued.clear()
            self._ready.clear()
        self._compilers.shutdown(wait=False, cancel_futures=True)
        self._settle_ended()
        for stream in [*self._running, *queued]:
            if failure is None:
                stream.finish(_cancelled())
            else:
                stream.fail(failure)
        self._running.clear()


def _has_to_compile(config: GenerationConfig) -> bool:
    """Whether preparing a request can take long: a grammar, or texts that are looked for in the whole vocabulary."""
    return bool(config.regex or config.json_schema or config.banned or config.forced)


def _settle(stream: CompletionStream, request: GenerationRequest) -> None:
    """End the stream of a request that has ended. One whose settings allow no token fails, as in ``generate``."""
    if request.error is not None:
        stream.fail(request.error)
    elif request.problem and not request.token_ids:
        stream.fail(ConfigError(request.problem))
    else:
        stream.finish(request.completion())


def _cancelled() -> Completion:
    """The completion of a request that was cancelled before it ran."""
    return Completion("", [], "cancelled", 0.0, [])
