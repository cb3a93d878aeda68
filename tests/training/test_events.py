"""The events of the training loop."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.helpers import text_of, tiny_config, tiny_model
from wholegpt.console import Console
from wholegpt.data import Batch
from wholegpt.losses import IGNORED
from wholegpt.model import Transformer
from wholegpt.runs import api
from wholegpt.runs import train as runs
from wholegpt.settings.presets import configure
from wholegpt.training.events import Callback, Callbacks, StepMetrics
from wholegpt.training.loop import train, train_step
from wholegpt.training.objectives import LanguageModeling
from wholegpt.training.optimizers import make_run_optimizer
from wholegpt.training.state import TrainingState

QUIET = Console(quiet=True)


class Recorder(Callback):
    """Records every event."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def before_update(self, state: TrainingState, model: nn.Module) -> None:
        gradients = [p.grad for p in model.parameters() if p.requires_grad]
        assert all(one is not None for one in gradients)
        norm = float(nn.utils.get_total_norm([one for one in gradients if one is not None]))
        self.events.append(("before_update", state.step, norm))

    def after_step(self, state: TrainingState, metrics: StepMetrics) -> None:
        self.events.append(("after_step", state.step, metrics.gradient_norm))

    def after_evaluation(self, state: TrainingState) -> None:
        assert state.last_validation and "nats_per_token" in state.last_validation
        self.events.append(("after_evaluation", state.step))

    def at_end(self, state: TrainingState) -> None:
        self.events.append(("at_end", state.step))


def add_callback(callback: Callback, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every run have one more callback, before its own."""

    class More(Callbacks):
        def __init__(self, callbacks: Sequence[Callback]) -> None:
            super().__init__([callback, *callbacks])

    monkeypatch.setattr(runs, "Callbacks", More)


def test_a_run_reports_its_events_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    add_callback(recorder, monkeypatch)
    (tmp_path / "text.txt").write_text(text_of(4000))
    config = tiny_config(
        tmp_path / "text.txt", training={"steps": 4, "gradient_clip": 0.25}, evaluation={"every": 2}
    )
    api.train(config=config, out=tmp_path / "run", console=QUIET)
    kinds = [(event[0], event[1]) for event in recorder.events]
    step = [[("before_update", done), ("after_step", done + 1)] for done in range(4)]
    expected = [*step[0], *step[1], ("after_evaluation", 2), *step[2], *step[3], ("after_evaluation", 4)]
    assert kinds == [*expected, ("at_end", 4)]
    norms = [event[2] for event in recorder.events if event[0] == "before_update"]
    assert all(norm <= 0.25 * 1.0001 for norm in norms)  # clipped
    assert max(event[2] for event in recorder.events if event[0] == "after_step") > 0.25


def test_a_callback_can_change_gradients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pruning mask works in this way: what has no gradient and no weight decay keeps its value."""

    class Freeze(Callback):
        def before_update(self, state: TrainingState, model: nn.Module) -> None:
            for parameter in model.parameters():
                parameter.grad = None

    (tmp_path / "text.txt").write_text(text_of(4000))
    config = tiny_config(tmp_path / "text.txt", training={"steps": 3}, evaluation={"every": 1})
    add_callback(Freeze(), monkeypatch)
    frozen = api.train(config=config, out=tmp_path / "frozen", console=QUIET)
    assert frozen.state.best and frozen.state.best.step == 1  # no evaluation was better than the first


def test_a_callback_stops_the_loop_after_the_current_step() -> None:
    class Stop(Callback):
        def after_step(self, state: TrainingState, metrics: StepMetrics) -> None:
            state.stop_reason = "enough" if state.step == 2 else ""

    state, recorder = TrainingState(), Recorder()
    metrics = StepMetrics(1.0, 0.1, None, 7, 0.0)
    train(lambda state, callbacks: metrics, 5, state, Callbacks([Stop(), recorder]))
    assert [event[:2] for event in recorder.events] == [("after_step", 1), ("after_step", 2), ("at_end", 2)]
    assert (state.step, state.tokens, state.stop_reason) == (2, 14, "enough")


def test_time_is_charged_to_the_clock_of_each_callback() -> None:
    class Slow(Callback):
        is_training = False

        def after_step(self, state: TrainingState, metrics: StepMetrics) -> None:
            torch.linalg.svd(torch.ones(100, 100))

    state = TrainingState()
    train(lambda state, callbacks: StepMetrics(1.0, 0.1, None, 7, 0.0), 3, state, Callbacks([Slow()]))
    assert state.other_seconds > 0 and state.train_seconds > 0
    assert dataclasses.asdict(state)["tokens"] == 21


def test_a_batch_without_terms_trains_nothing() -> None:
    torch.manual_seed(0)
    model = Transformer(tiny_model())
    config = configure({"optimizer": {"kind": "adamw", "weight_decay": 0.5}, "runtime": {"device": "cpu"}})
    optimizer = make_run_optimizer(model, config)
    token_ids = torch.randint(37, (2, 12))

    class Unscored:
        def batch(self, step: int) -> Batch:
            return Batch(token_ids, torch.full_like(token_ids, IGNORED))

    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    metrics = train_step(model, optimizer, LanguageModeling(), Unscored(), config, TrainingState())
    assert metrics.gradient_norm is None and metrics.tokens == 24
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
