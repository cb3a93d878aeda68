"""Planning for a time budget: the chosen model and steps, the plan's notes, and runs that follow their plan."""

import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import Fails, make_plans_small, text_of
from wholegpt import runtime
from wholegpt.checkpoint import CheckpointStore
from wholegpt.cli import main
from wholegpt.console import Console
from wholegpt.errors import ConfigError
from wholegpt.model import flops_per_token, parameter_count, saved_activations
from wholegpt.planning import ENGLISH, ENGLISH_PROSE, Machine, Plan, Text, plan_elsewhere, planner
from wholegpt.planning import choice as choices
from wholegpt.planning.choice import Chooser, batch_size, planned_config, regularization, run_seconds
from wholegpt.planning.machine import Rates, Speeds, step_seconds
from wholegpt.planning.scaling import Difficulty
from wholegpt.runs import api
from wholegpt.runs import create as start
from wholegpt.settings import presets
from wholegpt.settings.choices import Dtype
from wholegpt.settings.schema import Config, ModelConfig, PrecisionConfig, TrainingConfig
from wholegpt.settings.serialization import from_mapping
from wholegpt.training.callbacks import WatchPace
from wholegpt.training.loop import StepMetrics
from wholegpt.training.state import TrainingState

LAPTOP = Machine(flops=3e11, bandwidth=3e10, memory=8e9)
DECIDED = runtime.decide(Config(precision=PrecisionConfig(dtype=Dtype.float32)))


def planned(minutes: float, text: Text = ENGLISH_PROSE, machine: Machine = LAPTOP) -> Plan:
    return plan_elsewhere(Config(), text, ENGLISH, minutes, machine)


@pytest.mark.slow
def test_more_time_or_a_faster_machine_gives_a_lower_loss_and_a_model_at_least_as_large() -> None:
    plans = [planned(minutes) for minutes in (2, 5, 20, 120)]
    plans.append(planned(120, machine=dataclasses.replace(LAPTOP, flops=3e13, bandwidth=3e12)))
    losses = [plan.bits_per_byte.expected for plan in plans]
    sizes = [parameter_count(plan.config.model).total for plan in plans]
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.9 * losses[0]
    assert sizes == sorted(sizes) and sizes[-1] > sizes[0]
    assert plans[-1].tokens < 21 * sizes[-1]  # far outside the sweep, the published rule determines the size
    for plan in plans:
        assert 0.9 * 60 * plan.minutes < plan.seconds <= 60 * plan.minutes
        assert plan.bits_per_byte.low < plan.bits_per_byte.expected < plan.bits_per_byte.high
        assert plan.useful_minutes is None and not plan.measured


@pytest.mark.slow
def test_plan_for_a_small_text_states_when_more_time_stops_helping() -> None:
    text = dataclasses.replace(ENGLISH_PROSE, train_tokens=30_000)
    plans = [planned(minutes, text) for minutes in (60, 600)]
    for plan in plans:
        assert plan.useful_minutes is not None and plan.useful_minutes < 0.8 * plan.minutes
        assert f"more than {plan.useful_minutes:.1f} minutes would hardly help" in plan.describe()
    assert plans[1].bits_per_byte.expected > 0.98 * plans[0].bits_per_byte.expected


@pytest.mark.slow
def test_plans_stay_within_the_sizes_and_epochs_of_the_sweep() -> None:
    """At most 25 block parameters per token of text and 20 epochs, unless the minimum number of steps needs more."""
    for tokens in (15_000, 400_000):
        plan = planned(100_000, dataclasses.replace(ENGLISH_PROSE, train_tokens=tokens))
        assert parameter_count(plan.config.model).blocks <= 25 * tokens
        assert plan.epochs <= 20 or plan.tokens <= 1.2 * choices.LEAST_TOKENS


def test_plan_fits_a_small_memory() -> None:
    wide = planned(600)
    memory = planner.PROGRAM_BYTES + 1e8
    tight = planned(600, machine=dataclasses.replace(LAPTOP, memory=memory))
    assert tight.peak_memory_bytes <= memory < wide.peak_memory_bytes
    assert wide.to_json()["product_flops_per_second"] == LAPTOP.flops
    with pytest.raises(ConfigError, match=r"the smallest model that --minutes plans needs 0\.01 GB besides"):
        planned(600, machine=dataclasses.replace(LAPTOP, memory=planner.PROGRAM_BYTES + 1e6))


def test_memory_limit_includes_the_memory_already_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make_plans_small(monkeypatch)
    (tmp_path / "text.txt").write_text(text_of(60_000))
    source, quiet = tmp_path / "text.txt", Console(quiet=True)
    resident = runtime.resident_bytes(torch.device("cpu"))
    with pytest.raises(ConfigError, match="the smallest model that --minutes plans needs"):
        api.plan(source, minutes=2, memory=0.9 * resident, console=quiet)
    with pytest.raises(ConfigError, match="memory and machine are given"):
        api.plan(minutes=5, memory=1e9, machine=LAPTOP)


def test_text_too_small_to_plan_for_is_rejected(fails: Fails, tmp_path: Path) -> None:
    for repeated in (1, 150):
        (tmp_path / "text.txt").write_text("ab" * repeated)
        message = fails(
            "train", tmp_path / "text.txt", "--minutes", "2", "--out", tmp_path / "run", "--quiet"
        )
        assert "too few for --minutes" in message and not (tmp_path / "run").exists()


def test_plan_after_a_pilot_run_with_rising_loss() -> None:
    """For a text so small that the pilot run overfits: no improvement is predicted, and the plan is short."""
    text = dataclasses.replace(ENGLISH_PROSE, train_tokens=3000)
    plan = plan_elsewhere(Config(), text, Difficulty(early=4.0, last=4.5), 60, LAPTOP)
    assert plan.useful_minutes is not None and plan.useful_minutes < 6
    loss = plan.bits_per_byte
    assert loss.expected == pytest.approx(4.5 / (math.log(2) * text.bytes_per_token))
    assert loss.high > 1.2 * loss.expected


def test_error_for_too_little_time_states_the_minimum() -> None:
    with pytest.raises(ConfigError, match="the least that makes sense is") as caught:
        planned(0.01)
    least = float(str(caught.value).rsplit(" ", 1)[1])
    assert planned(least).config.training.steps >= choices.LEAST_STEPS
    with pytest.raises(ConfigError):
        planned(least / 2)


def test_fastest_of_equal_losses_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """If no choice lowers the loss, the smallest model with the fewest steps is chosen."""
    from wholegpt.planning.scaling import Expectation

    monkeypatch.setattr(choices, "expected_loss", lambda *_: Expectation(3.0, 2.9, 3.1))
    text = dataclasses.replace(ENGLISH_PROSE, train_tokens=30_000)
    choice = Chooser(DECIDED, text, ENGLISH, Speeds(LAPTOP), 8e9).choose(600.0)
    assert choice and choice.config.model.d_model == choices.WIDTHS[0]
    assert choice.config.training.steps <= choices.LEAST_STEPS / 0.9


def test_run_seconds_by_hand() -> None:
    config = planned_config(DECIDED, 128, ENGLISH_PROSE, 300 * 4096)
    assert config.training.steps == 300 and config.evaluation.every == 30
    rates = Rates(0.5, validation_tokens_per_second=1e4, sample_tokens_per_second=60.0, start_seconds=4.0)
    tokens = 10 * 20_000 + ENGLISH_PROSE.validation_tokens
    saving = (10 + 154 / 600) * 16 * parameter_count(config.model).total / choices.DISK_BYTES_PER_SECOND
    by_hand = 4 + 300 * 0.5 + tokens / 1e4 + 3 * 120 / 60 + saving + choices.REPORT_SECONDS
    assert run_seconds(config, ENGLISH_PROSE, rates) == pytest.approx(by_hand)


def test_step_seconds_in_both_limits() -> None:
    """Only products count with infinite bandwidth, and only memory traffic with infinite compute."""
    config = planned_config(DECIDED, 256, ENGLISH_PROSE, 300 * 4096)
    products = step_seconds(config, Machine(1e12, math.inf))
    assert products == pytest.approx(
        (3 * flops_per_token(config.model) * 4096 + 30 * 256 * parameter_count(config.model).blocks) / 1e12
    )
    traffic = step_seconds(config, Machine(math.inf, 1e10))
    kept = 4096 * (saved_activations(config.model, config.precision.attention) + 2 * 4096)
    parameters = parameter_count(config.model).total
    assert traffic == pytest.approx((44 * 4 * kept + 12 * 4 * parameters) / 1e10)
    assert step_seconds(config, Machine(1e12, 1e10)) == pytest.approx(products + traffic)


def test_unmeasured_speeds_are_scaled_from_the_nearest_measured_one() -> None:
    speeds = Speeds(LAPTOP)
    small, large = (planned_config(DECIDED, width, ENGLISH_PROSE, 1e6) for width in (128, 256))
    speeds.add(small, Rates(0.3, 20_000.0, 90.0))
    assert speeds(small) == Rates(0.3, 20_000.0, 90.0)
    ratio = step_seconds(large, LAPTOP) / step_seconds(small, LAPTOP)
    assert speeds(large).step_seconds == pytest.approx(0.3 * ratio)
    assert speeds(large).validation_tokens_per_second == pytest.approx(20_000 / ratio)
    assert speeds(large).sample_tokens_per_second == pytest.approx(90.0 * 3 / 4)


def test_batch_size_and_regularization_grow_with_training() -> None:
    assert [batch_size(tokens) for tokens in (0, 1e6, 63e6, 64e6, 1e9, 17e9)] == [16, 16, 16, 32, 64, 512]
    rate = 0.006
    decays = [regularization(epochs, 1000, rate) for epochs in (0.5, 1, 5, 10, 20)]
    assert decays[0] == decays[1] == (pytest.approx(0.2), 0.0)
    assert [dropout for _, dropout in decays] == [0.0, 0.0, 0.0, 0.1, 0.2]
    assert [decay for decay, _ in decays] == sorted(decay for decay, _ in decays)
    assert regularization(20, 100, rate)[0] == 1.0


@pytest.mark.timed
def test_run_with_a_time_budget_follows_its_plan(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_plans_small(monkeypatch)
    (tmp_path / "text.txt").write_text(text_of(60_000))
    source = str(tmp_path / "text.txt")
    command = ["train", source, "--minutes", "0.3", "--json", "--logging.sample-tokens", "8", "--out"]

    def attempt(out: Path) -> tuple[float, Any, str, Any]:
        started = time.monotonic()
        assert main([*command, str(out)]) == 0
        seconds = time.monotonic() - started
        printed = capsys.readouterr()
        return seconds, json.loads(printed.out), printed.err, json.loads((out / "plan.json").read_text())

    seconds, result, notes, plan = attempt(tmp_path / "run0")
    for number in (1, 2):
        if abs(plan["seconds"] / seconds - 1) < 0.5:
            break  # otherwise another program used the processor during or after the measurement
        seconds, result, notes, plan = attempt(tmp_path / f"run{number}")
    assert "plan for 0.3 minutes, measured on this machine:" in notes
    assert result["plan"] == plan and plan["measured"]
    assert result["steps"] == result["planned_steps"] == plan["steps"]
    assert 0 < plan["train_seconds"] < plan["seconds"] < 1.2 * 0.3 * 60
    assert plan["seconds"] == pytest.approx(seconds, rel=0.5)  # tests run on busy machines
    assert plan["peak_memory_bytes"] <= runtime.peak_bytes(torch.device("cpu"))
    recorded = presets.recipe(str(Path(result["run"]) / "config.yaml"))
    assert recorded == from_mapping(plan["config"], Config())


@pytest.mark.timed
def test_planned_run_resumes_without_a_new_measurement(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make_plans_small(monkeypatch)
    (tmp_path / "text.txt").write_text(text_of(60_000))
    quiet = Console(quiet=True)
    config = Config(logging=dataclasses.replace(Config().logging, sample_tokens=0))
    run = api.train(
        tmp_path / "text.txt",
        config=config,
        minutes=0.2,
        max_seconds=0.5,
        out=tmp_path / "run",
        console=quiet,
    )
    assert 0 < run.state.step < run.config.training.steps
    monkeypatch.setattr(start, "make_plan", None)
    resumed = api.resume(run.path, console=quiet)
    assert resumed.state.step == run.config.training.steps and resumed.plan == run.plan
    once = api.train(config=resumed.config, out=tmp_path / "once", console=quiet)
    folders = [CheckpointStore(path).path(resumed.state.step) for path in (resumed.path, once.path)]
    first, second = ((folder / "model.safetensors").read_bytes() for folder in folders)
    assert first == second


def test_settings_decided_by_the_plan_cannot_be_set(fails: Fails, text_file: Path) -> None:
    command = ("train", text_file, "--minutes", "2")
    assert "decides model.n_layers itself; leave it out" in fails(*command, "--model.n-layers", "4")
    assert "decides checkpointing.every itself" in fails(*command, "--checkpointing.every", "100")
    assert "decides logging.sample_every itself" in fails(*command, "--logging.sample-every", "9")
    assert "decides training.steps itself" in fails(
        "plan", text_file, "--minutes", "2", "--training.steps", "5"
    )
    assert "cannot be combined with --recipe" in fails(*command, "--recipe", "demo")
    assert "cannot be combined with --print-config" in fails(*command, "--print-config")
    assert "cannot be combined with --preset" in fails(*command, "--preset", "gpt2-small")
    assert "--minutes is -1" in fails("train", text_file, "--minutes", "-1")
    assert "--minutes is nan" in fails("plan", text_file, "--minutes", "nan")
    with pytest.raises(ConfigError, match=r"decides training\.steps itself"):
        api.train(text_file, config=Config(training=TrainingConfig(steps=5)), minutes=1)
    with pytest.raises(ConfigError, match=r"decides model\.n_layers itself"):
        api.plan(text_file, config=Config(model=ModelConfig(n_layers=2)), minutes=1)


def test_invalid_machine_descriptions_are_rejected(fails: Fails) -> None:
    message = fails("plan", "--minutes", "5", "--flops", "1e12")
    assert "give all of --flops, --bandwidth and --memory" in message
    assert "--memory is 0" in fails("plan", "--minutes", "5", "--memory", "0")
    assert "no text given" in fails("plan", "--minutes", "5")


@pytest.mark.slow
def test_plan_for_a_described_machine(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", "--minutes", "30", "--flops", "4e14", "--bandwidth", "3e12", "--memory", "80"]
    assert main(command) == 0
    assert "predicted from the description, not measured" in capsys.readouterr().out
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["measured"] is False


def test_change_of_speed_is_reported_once(capsys: pytest.CaptureFixture[str]) -> None:
    config = Config(training=TrainingConfig(steps=400))
    watch, state = WatchPace(400.0, config, Console()), TrainingState()
    for step in range(1, 401):
        state.step = step
        state.train_seconds += 1.0 if step <= 100 else 2.0
        watch.after_step(state, StepMetrics(1.0, 0.1, 1.0, 10, 1.0))
    notes = capsys.readouterr().err.splitlines()
    assert len(notes) == 1 and "will take longer than planned: 700 s, of which 180 s have passed" in notes[0]
