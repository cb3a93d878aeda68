"""Streams: a request's text pieces and completion, in threads and asyncio tasks."""

import asyncio

import pytest

from tests.generation.scheduling import LONG, PATIENCE, Gated, alone, content, scheduler_of
from wholegpt.errors import ConfigError
from wholegpt.generation import Completion, CompletionStream, Scheduler
from wholegpt.generation.speculation import PromptLookup
from wholegpt.settings.schema import GenerationConfig

pytestmark = pytest.mark.usefixtures("no_thread_is_left")


def test_pieces_join_to_the_text() -> None:
    """At byte level, where characters can span tokens or be invalid, with and without stop strings."""
    with scheduler_of() as scheduler:
        for seed in range(8):
            config = GenerationConfig(30, 1.0, stop=("e", "\ufffd\ufffd") if seed % 2 else (), seed=seed)
            stream = scheduler.submit([seed], config)
            pieces = list(stream)
            assert "".join(pieces) == stream.result(0).text == alone([seed], config).text
            assert all(pieces) and pieces == list(stream), "each iteration starts from the first piece"


def test_pieces_arrive_as_they_are_generated(gated: Gated) -> None:
    with scheduler_of(gated) as scheduler:
        stream = scheduler.submit([1], GenerationConfig(3, 0))
        pieces = iter(stream)
        gated.wait()
        for _ in range(2):
            gated.step()
            assert next(pieces) == "\0" and not stream.done
        gated.permits.release()
        assert list(pieces) == ["\0"]
        assert stream.done


def test_slow_or_absent_consumers_do_not_block_others() -> None:
    with scheduler_of(slots=2) as scheduler:
        slow, unread = (scheduler.submit([n], GenerationConfig(100, 1.0)) for n in range(2))
        pieces = iter(slow)
        first = next(pieces)
        others = [scheduler.submit([n], GenerationConfig(10)) for n in range(5)]
        for stream in [*others, unread]:
            stream.result(PATIENCE)
        completion = slow.result(PATIENCE)
        assert first + "".join(pieces) == completion.text
        assert len(list(unread)) <= 100


def test_streams_with_no_tokens_or_with_a_drafter() -> None:
    repeated = GenerationConfig(40, 0.0)
    prompt = [1, 2, 3, 4] * 4
    with scheduler_of() as scheduler:
        assert content(scheduler.submit([1], GenerationConfig(0)).result(PATIENCE)) == ("", [], "length")
        drafted = scheduler.submit(prompt, repeated, PromptLookup())
        assert content(drafted.result(PATIENCE)) == content(alone(prompt, repeated))


def test_waiting_for_a_result_can_time_out(gated: Gated) -> None:
    with scheduler_of(gated) as scheduler:
        stream = scheduler.submit([1], LONG)
        with pytest.raises(TimeoutError, match=r"not ended within 0\.01 seconds"):
            stream.result(0.01)
        gated.open()


def test_asyncio_tasks_share_a_scheduler() -> None:
    configs = [GenerationConfig(12, 1.0, seed=seed) for seed in range(10)]

    async def one(scheduler: Scheduler, config: GenerationConfig) -> tuple[str, Completion]:
        stream = scheduler.submit([1], config)
        return "".join([piece async for piece in stream]), await stream

    async def run(scheduler: Scheduler) -> list[tuple[str, Completion]]:
        wrong = scheduler.submit([], configs[0])
        with pytest.raises(ConfigError):
            await wrong
        with pytest.raises(ConfigError):
            _ = [piece async for piece in wrong]
        return await asyncio.gather(*(one(scheduler, config) for config in configs))

    with scheduler_of(slots=3) as scheduler:
        results = asyncio.run(asyncio.wait_for(run(scheduler), PATIENCE))
    for (text, completion), config in zip(results, configs, strict=True):
        assert content(completion) == content(alone([1], config)) and text == completion.text


def test_asyncio_task_waits_without_blocking_its_loop(gated: Gated) -> None:
    """Cancelling the task or closing its event loop does not disturb the engine."""

    async def run(stream: CompletionStream) -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(stream, 0.01)
        assert not stream._watchers
        pieces = aiter(stream)
        first = asyncio.ensure_future(anext(pieces))
        await asyncio.sleep(0.01)
        assert not first.done()
        gated.permits.release()
        assert await asyncio.wait_for(first, PATIENCE) == "\0"
        await pieces.aclose()  # type: ignore[attr-defined]
        stream.cancel()
        gated.permits.release()
        assert (await asyncio.wait_for(stream, PATIENCE)).finish_reason == "cancelled"

    with scheduler_of(gated) as scheduler:
        asyncio.run(run(scheduler.submit([1], GenerationConfig(50, 0))))
        left = scheduler.submit([1], GenerationConfig(3, 0))
        loop = asyncio.new_event_loop()
        task = loop.create_task(left._completed())
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # it never ends
        loop.run_until_complete(asyncio.sleep(0.01))
        assert left._watchers
        loop.close()
        gated.open()
        assert left.result(PATIENCE).finish_reason == "length"
