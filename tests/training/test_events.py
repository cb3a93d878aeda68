"""Callbacks and the events of the training loop."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import wholegpt as wg
from tests.helpers import text_of, tiny_config, tiny_model
from wholegpt.checkpoint import CheckpointStore
from wholegpt.console import Console
from wholegpt.data import Batch
from wholegpt.losses import IGNORED
from wholegpt.model import Transformer
from wholegpt.runs import api
from wholegpt.settings.presets import configure, recipe
from wholegpt.settings.schema import Config, ModelConfig
from wholegpt.training.callbacks import WarnOfDropout
from wholegpt.training.events import Callback, Callbacks, StepMetrics
from wholegpt.training.loop import train, train_step
from wholegpt.training.objectives import LanguageModeling
from wholegpt.training.optimizers import make_run_optimizer
from wholegpt.training.state import TrainingState

QUIET = Console(quiet=True)


class Recorder(Callback):
    """Records every event: its name, the step, and its arguments."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def at_start(self, state: TrainingState, config: Config) -> None:
        self.events.append(("at_start", state.step, config))

    def before_update(self, state: TrainingState, model: nn.Module) -> None:
        gradients = [p.grad for p in model.parameters() if p.requires_grad]
        assert all(one is not None for one in gradients)
        norm = float(nn.utils.get_total_norm([one for one in gradients if one is not None]))
        self.events.append(("before_update", state.step, norm))

    def after_log(self, state: TrainingState, record: Mapping[str, Any]) -> None:
        self.events.append((f"log {record['kind']}", record["step"], dict(record)))

    def after_step(self, state: TrainingState, metrics: StepMetrics) -> None:
        self.events.append(("after_step", state.step, metrics.gradient_norm))

    def after_evaluation(self, state: TrainingState) -> None:
        assert state.last_validation and "nats_per_token" in state.last_validation
        self.events.append(("after_evaluation", state.step))

    def at_end(self, state: TrainingState) -> None:
        self.events.append(("at_end", state.step))

    @property
    def kinds(self) -> list[tuple[str, int]]:
        return [(event[0], event[1]) for event in self.events]


class StopAt(Callback):
    """Stops a run after a given step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def after_step(self, state: TrainingState, metrics: StepMetrics) -> None:
        if state.step == self.step:
            state.stop_reason = "seen enough"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(text_of(4000))
    return path


def weights(run: Path, step: int) -> bytes:
    return (CheckpointStore(run).path(step) / "model.safetensors").read_bytes()


def test_events_are_reported_in_order(text: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    config = tiny_config(
        text,
        training={"steps": 4, "gradient_clip": 0.25},
        evaluation={"every": 2},
        logging={"sample_every": 4},
    )
    run = api.train(config=config, out=tmp_path / "run", callbacks=[wg.Callback(), recorder], console=QUIET)
    events, kinds = recorder.events, recorder.kinds
    step = [[("before_update", done), ("log train", done + 1)] for done in range(4)]
    evaluated = {done: [("log validation", done), ("after_evaluation", done)] for done in (2, 4)}
    expected = [("at_start", 0), *step[0], ("after_step", 1), *step[1], *evaluated[2], ("after_step", 2)]
    expected += [*step[2], ("after_step", 3), *step[3], *evaluated[4], ("log sample", 4), ("after_step", 4)]
    assert kinds == [*expected, ("at_end", 4)]
    norms = [event[2] for event in events if event[0] == "before_update"]
    assert all(norm <= 0.25 * 1.0001 for norm in norms)  # clipped
    assert max(event[2] for event in events if event[0] == "after_step") > 0.25
    assert events[0][2] == recipe(str(run.path)), "the resolved settings"
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [e[2] for e in events if e[0].startswith("log ")]


def test_callback_can_change_gradients(text: Path, tmp_path: Path) -> None:
    """This is how a pruning mask works: parameters without a gradient or weight decay keep their values."""

    class Freeze(Callback):
        def before_update(self, state: TrainingState, model: nn.Module) -> None:
            for parameter in model.parameters():
                parameter.grad = None

    config = tiny_config(text, training={"steps": 3}, evaluation={"every": 1})
    frozen = api.train(config=config, out=tmp_path / "frozen", callbacks=[Freeze()], console=QUIET)
    assert frozen.state.best and frozen.state.best.step == 1  # no evaluation was better than the first


def test_callback_stops_a_run_permanently(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The stop reason is saved: resuming does no further steps unless the number of steps is given again."""
    whole = api.train(config=tiny_config(text), out=tmp_path / "whole", console=QUIET)
    run = api.train(config=tiny_config(text), out=tmp_path / "run", callbacks=[StopAt(5)], console=QUIET)
    assert (run.state.step, run.state.stop_reason) == (5, "seen enough")
    assert CheckpointStore(run.path).last_good() == (5, [])
    capsys.readouterr()
    recorder = Recorder()
    again = api.resume(run.path, callbacks=[recorder])
    assert (again.state.step, again.state.stop_reason) == (5, "seen enough")
    assert recorder.kinds == [("at_start", 5), ("at_end", 5)]
    assert "ended after step 5: seen enough; `wholegpt train --resume" in capsys.readouterr().err
    assert api.resume(run.path, steps=12, callbacks=[recorder], console=QUIET).state.stop_reason == ""
    assert recorder.kinds[2:4] == [("at_start", 5), ("before_update", 5)]
    assert weights(run.path, 12) == weights(whole.path, 12)


def test_callback_exception_reaches_the_caller(text: Path, tmp_path: Path) -> None:
    class Broken(Exception):
        pass

    error = Broken("of the user")

    class Raises(Callback):
        def after_step(self, state: TrainingState, metrics: StepMetrics) -> None:
            if state.step == 7:
                raise error

    recorder, out = Recorder(), tmp_path / "run"
    with pytest.raises(Broken) as caught:
        api.train(config=tiny_config(text), out=out, callbacks=[recorder, Raises()], console=QUIET)
    assert caught.value is error
    assert recorder.kinds[-1] == ("after_step", 7), "without at_end"
    assert CheckpointStore(out).last_good() == (6, [])  # the best so far
    assert api.resume(out, console=QUIET).state.step == 12  # the lock was released
    whole = api.train(config=tiny_config(text), out=tmp_path / "whole", console=QUIET)
    assert weights(out, 12) == weights(whole.path, 12)


def test_callbacks_of_fine_tuning_receive_the_evaluation_of_the_parent(text: Path, tmp_path: Path) -> None:
    parent = api.train(config=tiny_config(text), out=tmp_path / "parent", console=QUIET)
    recorder = Recorder()
    config = configure(
        {"training": {"steps": 2}, "logging": {"sample_tokens": 0}, "runtime": {"device": "cpu"}}
    )
    api.finetune(
        parent.path, text, task="pretraining", config=config, out=tmp_path / "run", callbacks=[recorder],
        console=QUIET,
    )  # fmt: skip
    assert recorder.kinds[:3] == [("at_start", 0), ("log validation", 0), ("after_evaluation", 0)]


WRONG_CALLBACKS = """
import sys, wholegpt as wg
for callbacks in ([wg.Callback], [wg.Callback(), print], wg.Callback()):
    try:
        wg.train(sys.argv[1], out=sys.argv[2], callbacks=callbacks)
    except wg.WholeGPTError as error:
        print(error)
"""


def test_invalid_callbacks_are_rejected_before_the_run_starts(text: Path) -> None:
    """In a subprocess, without the run-time type checks of the tests."""
    command = [sys.executable, "-c", WRONG_CALLBACKS, str(text), str(text.parent / "run")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "callbacks[0] is a class; expected an object of a subclass of wg.Callback",
        "callbacks[1] is of type builtin_function_or_method; expected an object of a subclass of wg.Callback",
        "callbacks is of type Callback; expected a list of callbacks",
    ], done.stderr
    assert not (text.parent / "run").exists()


def test_callback_stops_the_loop_after_the_current_step() -> None:
    class Stop(Callback):
        def after_step(self, state: TrainingState, metrics: StepMetrics) -> None:
            state.stop_reason = "enough" if state.step == 2 else ""

    state, recorder = TrainingState(), Recorder()
    metrics = StepMetrics(1.0, 0.1, None, 7, 0.0)
    train(lambda state, callbacks: metrics, 5, state, Callbacks([Stop(), recorder]))
    assert [event[:2] for event in recorder.events] == [("after_step", 1), ("after_step", 2), ("at_end", 2)]
    assert (state.step, state.tokens, state.stop_reason) == (2, 14, "enough")


def test_callback_time_counts_as_training_or_other_time() -> None:
    class Slow(Callback):
        is_training = False

        def after_step(self, state: TrainingState, metrics: StepMetrics) -> None:
            torch.linalg.svd(torch.ones(100, 100))

    state = TrainingState()
    train(lambda state, callbacks: StepMetrics(1.0, 0.1, None, 7, 0.0), 3, state, Callbacks([Slow()]))
    assert state.other_seconds > 0 and state.train_seconds > 0
    assert dataclasses.asdict(state)["tokens"] == 21


def test_batch_without_targets_does_not_change_the_weights() -> None:
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


@pytest.mark.parametrize(("loss", "warned"), [(7.0, True), (3.4, False)])
def test_warning_about_dropout_that_hurts_training(
    loss: float, warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Config(model=ModelConfig(dropout=0.1))
    callback = WarnOfDropout("nats_per_token", config, Console(quiet=True))
    for step in (1, 2):
        state = TrainingState(step=step, last_validation={"nats_per_token": 2.3})
        callback.after_step(state, StepMetrics(loss, 0.1, 1.0, 10, 1.0))
    shown = capsys.readouterr().err
    assert shown.count("try --model.dropout 0") == warned
    assert not warned or "with dropout 0.1 the loss is 7.00, and 2.30 in evaluation" in shown
