"""The scheduler: queue, cancellation in every state, isolation of errors, threads."""

import json
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
import torch

from tests.generation.scheduling import (
    LONG,
    PATIENCE,
    POISON,
    TOKENIZER,
    Gated,
    PoisonError,
    alone,
    content,
    poison,
    scheduler_of,
    until,
)
from tests.helpers import LogitsOnly
from wholegpt.errors import ConfigError, NumericsError, QueueFull, SchedulerClosed
from wholegpt.generation import CompletionStream
from wholegpt.generation.constraints import Constraint
from wholegpt.generation.scheduler import COMPILER_THREADS
from wholegpt.settings.schema import GenerationConfig

pytestmark = pytest.mark.usefixtures("no_thread_is_left")

# The queue


def test_full_queue_rejects_requests_at_once(gated: Gated) -> None:
    with scheduler_of(gated, slots=1, max_queued=2) as scheduler:
        running = scheduler.submit([1], GenerationConfig(3))
        gated.wait()  # it has left the queue
        queued = [scheduler.submit([1], GenerationConfig(3)) for _ in range(2)]
        with pytest.raises(QueueFull, match="2 requests are queued, which is the limit"):
            scheduler.submit([1], GenerationConfig(3))
        queued[0].cancel()
        queued.append(scheduler.submit([1], GenerationConfig(3)))
        with pytest.raises(QueueFull):
            scheduler.submit([1], GenerationConfig(3))
        gated.open()
        results = [stream.result(PATIENCE).finish_reason for stream in [running, *queued]]
    assert results == ["length", "cancelled", "length", "length"]


def test_requests_run_in_submission_order(gated: Gated) -> None:
    ended: list[int] = []
    with scheduler_of(gated, slots=1) as scheduler:
        streams = [scheduler.submit([1], GenerationConfig(2)) for _ in range(4)]
        threads = [
            threading.Thread(target=lambda n=n, s=s: (s.result(PATIENCE), ended.append(n)))
            for n, s in enumerate(streams)
        ]
        for thread in threads:
            thread.start()
        gated.wait()
        for n in range(4):
            gated.permits.release(2)
            until(lambda n=n: len(ended) == n + 1)
        for thread in threads:
            thread.join()
    assert ended == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["slots", "max_queued", "compiler_threads"])
def test_counts_below_one_are_rejected(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is 0; expected at least 1"):
        scheduler_of(**{name: 0})


# Cancelling


def test_cancelled_request_leaves_the_batch(gated: Gated) -> None:
    with scheduler_of(gated, slots=3) as scheduler:
        streams = [scheduler.submit([1], LONG) for _ in range(3)]
        gated.wait()
        while gated.rows[-1] < 3:
            gated.step()
        streams[0].cancel()
        streams[0].cancel()
        gated.step()
        assert gated.rows[-2:] == [3, 2]
        cancelled = streams[0].result(PATIENCE)
        assert cancelled.finish_reason == "cancelled" and len(cancelled.token_ids) >= 1
        waiting = scheduler.submit([1], GenerationConfig(1))
        gated.step()
        assert gated.rows[-1] == 3, "its slot is free"
        gated.open()
        assert waiting.result(PATIENCE).finish_reason == "length"
        assert [one.result(PATIENCE).finish_reason for one in streams[1:]] == ["length", "length"]
    assert max(gated.rows) == 3


def test_cancelling_a_queued_request(gated: Gated) -> None:
    with scheduler_of(gated, slots=1) as scheduler:
        scheduler.submit([1], LONG)
        gated.wait()
        queued = scheduler.submit([1], LONG)
        queued.cancel()
        assert content(queued.result(0)) == ("", [], "cancelled"), "without waiting for a step"
        assert list(queued) == []
        gated.open()
    assert max(gated.rows) == 1


def test_cancelling_a_request_while_its_constraint_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    started, proceed = threading.Event(), threading.Event()

    class Slow(Constraint):
        def __init__(self, *arguments: Any) -> None:
            started.set()
            assert proceed.wait(PATIENCE)
            super().__init__(*arguments)

    monkeypatch.setattr("wholegpt.generation.sampling.Constraint", Slow)
    form = GenerationConfig(5, regex="[ab]{5}")
    with scheduler_of(compiler_threads=1, max_queued=2) as scheduler:
        compiled, behind = (scheduler.submit([1], form) for _ in range(2))
        assert started.wait(PATIENCE)
        with pytest.raises(QueueFull):
            scheduler.submit([1], form)
        compiled.cancel()
        behind.cancel()
        assert content(compiled.result(0)) == content(behind.result(0)) == ("", [], "cancelled")
        free = scheduler.submit([1], GenerationConfig(5))
        assert content(free.result(PATIENCE)) == content(alone([1], GenerationConfig(5)))
        proceed.set()
        again = scheduler.submit([1], form)
        assert len(again.result(PATIENCE).text) == 5
    assert compiled.result(0).finish_reason == "cancelled"


def test_cancelling_a_finished_or_failed_request_has_no_effect() -> None:
    with scheduler_of() as scheduler:
        stream, wrong = scheduler.submit([1], GenerationConfig(5)), scheduler.submit([], LONG)
        before = stream.result(PATIENCE)
        stream.cancel()
        wrong.cancel()
        other = scheduler.submit([1], GenerationConfig(5))
        assert content(other.result(PATIENCE)) == content(before)
    stream.cancel()
    assert stream.result(0) is before and before.finish_reason == "length"
    with pytest.raises(ConfigError):
        wrong.result(0)


def test_cancelling_releases_text_held_back_for_a_stop_string(gated: Gated) -> None:
    """Uniform logits at temperature 0 give token 0 forever."""
    with scheduler_of(gated) as scheduler:
        stream = scheduler.submit([1], GenerationConfig(50, 0, stop=("\0" * 10,)))
        gated.wait()
        gated.step()
        gated.step()
        stream.cancel()
        gated.permits.release()
        completion = stream.result(PATIENCE)
    assert content(completion) == ("\0" * 3, [0] * 3, "cancelled")
    assert "".join(stream) == completion.text


# Errors


def test_error_of_one_request_does_not_affect_others(monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, draws=3)
    plain, schema = GenerationConfig(12, 1.0), json.dumps({"not": {}})
    wrong: list[tuple[list[int], GenerationConfig, type[Exception], str]] = [
        ([1], GenerationConfig(5, regex="(a"), ConfigError, "regex"),
        ([1], GenerationConfig(5, json_schema=schema), ConfigError, "not"),
        ([1], GenerationConfig(5, temperature=-1), ConfigError, "temperature"),
        ([1], GenerationConfig(5, forced=("a" * 9,)), ConfigError, "forced texts take"),
        ([], plain, ConfigError, "the prompt has 0 tokens"),
        ([1, 999], plain, ConfigError, "token id 999"),
        ([1] * 17, plain, ConfigError, "a slot has 20"),
        ([1, 2], GenerationConfig(12, 1.0, logit_bias=POISON), PoisonError, "poisoned"),
    ]
    with scheduler_of(capacity=20, slots=4) as scheduler:
        good, bad = list[CompletionStream](), list[CompletionStream]()
        for number, (prompt, config, _, _) in enumerate(wrong):
            good.append(scheduler.submit([number], plain))
            bad.append(scheduler.submit(prompt, config))
        for stream, (_, _, kind, problem) in zip(bad, wrong, strict=True):
            with pytest.raises(kind, match=problem):
                stream.result(PATIENCE)
            with pytest.raises(kind, match=problem):
                list(stream)
        for number, stream in enumerate(good):
            assert content(stream.result(PATIENCE)) == content(alone([number], plain))
        again = scheduler.submit([1], plain).result(PATIENCE)
        assert content(again) == content(alone([1], plain))


def test_non_finite_logits_fail_their_request_only() -> None:
    class Damaged(LogitsOnly):
        def forward(self, token_ids: torch.Tensor, cache: Any = None) -> torch.Tensor:
            self.prefill(token_ids, cache)
            logits = torch.zeros(*token_ids.shape, self.vocab_size)
            return logits.masked_fill((token_ids == 9)[..., None], torch.nan)

    config = GenerationConfig(6, 1.0, logit_bias=((9, -1e6),))
    with scheduler_of(Damaged(TOKENIZER.vocab_size, 100)) as scheduler:
        good, bad, other = (scheduler.submit([token], config) for token in (1, 9, 2))
        with pytest.raises(NumericsError, match="NaN or infinite logits"):
            bad.result(PATIENCE)
        assert len(good.result(PATIENCE).token_ids) == len(other.result(PATIENCE).token_ids) == 6


def test_settings_without_an_allowed_token_raise_the_same_error_as_generate() -> None:
    config = GenerationConfig(5, regex="aaa", banned=("a",))
    with pytest.raises(ConfigError) as expected:
        alone([1], config)
    with scheduler_of() as scheduler, pytest.raises(ConfigError) as found:
        scheduler.submit([1], config).result(PATIENCE)
    assert str(found.value) == str(expected.value)


def test_engine_error_fails_all_requests_and_closes_the_scheduler(gated: Gated) -> None:
    with scheduler_of(gated, slots=2) as scheduler:
        streams = [scheduler.submit([1], LONG) for _ in range(3)]
        gated.wait()
        gated.step()
        gated.step()
        gated.failure = RuntimeError("out of memory")
        gated.permits.release()
        for stream in streams:
            with pytest.raises(RuntimeError, match="out of memory"):
                stream.result(PATIENCE)
        with pytest.raises(RuntimeError, match="out of memory"):
            "".join(streams[0])
        with pytest.raises(
            SchedulerClosed, match="the engine failed with RuntimeError: out of memory"
        ) as refused:
            scheduler.submit([1], LONG)
        assert refused.value.__cause__ is gated.failure
        streams[0].cancel()


# Threads


def test_grammars_are_compiled_outside_the_engine_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    from wholegpt.generation import constraints

    threads: list[str] = []
    compiled = constraints._matcher

    def recorded(*arguments: Any) -> Any:
        threads.append(threading.current_thread().name)
        return compiled(*arguments)

    monkeypatch.setattr(constraints, "_matcher", recorded)
    forms: list[dict[str, Any]] = [{"regex": "[0-9]{3}"}, {"json_schema": '{"type": "boolean"}'}] * 5
    with scheduler_of(slots=4) as scheduler:
        streams = [
            scheduler.submit([1], GenerationConfig(20, 1.0, seed=n, **form)) for n, form in enumerate(forms)
        ]
        texts = [stream.result(PATIENCE).text for stream in streams]
    assert all(text.isdigit() and len(text) == 3 for text in texts[::2])
    assert set(texts[1::2]) <= {"true", "false"}
    assert len(threads) == 10 and all(name.startswith(COMPILER_THREADS) for name in threads), threads


def test_closing_cancels_running_requests(gated: Gated) -> None:
    scheduler = scheduler_of(gated, slots=2)
    streams = [scheduler.submit([1], LONG) for _ in range(4)]
    gated.wait()
    gated.step()
    closing = threading.Thread(target=scheduler.close)
    closing.start()
    until(lambda: scheduler._closing)
    with pytest.raises(SchedulerClosed, match="the scheduler is closed"):
        scheduler.submit([1], LONG)
    gated.permits.release()  # for the running step; no other is needed
    closing.join(PATIENCE)
    assert not closing.is_alive()
    completions = [stream.result(0) for stream in streams]
    assert [one.finish_reason for one in completions] == ["cancelled"] * 4
    assert len(completions[0].token_ids) == 2 and not completions[3].token_ids
    scheduler.close()


def test_closing_cancels_a_request_whose_constraint_is_being_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started = threading.Event()

    class Slow(Constraint):
        def __init__(self, *arguments: Any) -> None:
            started.set()
            time.sleep(0.2)
            super().__init__(*arguments)

    monkeypatch.setattr("wholegpt.generation.sampling.Constraint", Slow)
    with scheduler_of(compiler_threads=1) as scheduler:
        streams = [scheduler.submit([1], GenerationConfig(5, regex="a")) for _ in range(3)]
        assert started.wait(PATIENCE)
    assert [stream.result(0).finish_reason for stream in streams] == ["cancelled"] * 3


def test_ctrl_c_interrupts_a_waiting_caller_at_once() -> None:
    class Slow(LogitsOnly):
        def forward(self, token_ids: torch.Tensor, cache: Any = None) -> torch.Tensor:
            time.sleep(0.01)
            self.prefill(token_ids, cache)
            return torch.zeros(*token_ids.shape, self.vocab_size)

    main, sent = threading.main_thread().ident or 0, list[float]()

    def press() -> None:
        time.sleep(0.1)
        sent.append(time.monotonic())
        signal.pthread_kill(main, signal.SIGINT)

    presser, streams = threading.Thread(target=press), list[CompletionStream]()
    # A process started in the background of a shell inherits an ignored SIGINT.
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt), scheduler_of(Slow(TOKENIZER.vocab_size, 10**5)) as scheduler:
        streams.append(scheduler.submit([1], GenerationConfig(10**4, 0)))  # takes 100 s
        presser.start()
        streams[0].result()
    assert time.monotonic() - sent[0] < 5
    signal.signal(signal.SIGINT, previous)
    presser.join()
    assert streams[0].result(0).finish_reason == "cancelled"


def test_unclosed_scheduler_does_not_keep_the_process_alive() -> None:
    code = """
import torch
from tests.helpers import tiny_model
from wholegpt.generation import Scheduler
from wholegpt.model import Transformer
from wholegpt.settings.schema import GenerationConfig
from wholegpt.tokenizers import byte_tokenizer
tokenizer = byte_tokenizer()
model = Transformer(tiny_model(vocab_size=tokenizer.vocab_size)).eval()
scheduler = Scheduler(model, tokenizer, torch.device("cpu"))
for piece in scheduler.submit([1], GenerationConfig(10**5)):
    print("begun")
    break
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "begun\n", "")
