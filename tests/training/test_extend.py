"""Resuming a finished run for more steps than it was created with."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.helpers import Fails, tiny_config
from wholegpt.cli import main
from wholegpt.console import Console
from wholegpt.errors import ConfigError
from wholegpt.runs import api
from wholegpt.runs.extend import last_state
from wholegpt.settings.presets import configure

QUIET = Console(quiet=True)
TIMES = ("train_seconds", "other_seconds")


def assert_same_end(run: Path, other: Path, step: int) -> None:
    """Assert that weights, optimizer state and counters are equal, except for seconds."""
    folders = [path / "checkpoints" / f"step-{step:08d}" for path in (run, other)]
    for file in ("model.safetensors", "training/optimizer.safetensors"):
        ours, theirs = (load_file(folder / file) for folder in folders)
        assert ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in ours), file
    states = [json.loads((folder / "training/state.json").read_text()) for folder in folders]
    first, second = ({name: one[name] for name in one if name not in TIMES} for one in states)
    assert first == second


@pytest.mark.parametrize(
    ("schedule", "stopped"),
    [
        ({"kind": "constant"}, False),
        ({"kind": "inverse_square_root"}, False),
        ({"kind": "warmup_stable_decay", "decay_fraction": 0.25}, True),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else "",
)
def test_extended_run_equals_a_longer_run(
    schedule: dict[str, Any], stopped: bool, text_file: Path, tmp_path: Path
) -> None:
    """If past learning rates do not depend on the number of steps; a decaying run is stopped before its decay."""
    longer = tiny_config(text_file, schedule=schedule)
    whole = api.train(config=longer, out=tmp_path / "whole", console=QUIET)
    assert whole.state.step == 12
    shorter = tiny_config(text_file, schedule=schedule, training={"steps": 6})
    run = api.train(
        config=shorter, out=tmp_path / "run", max_seconds=1e-9 if stopped else None, console=QUIET
    )
    assert run.state.step == (1 if stopped else 6)
    extended = api.resume(run.path, steps=12, console=QUIET)
    assert extended.state.step == extended.config.training.steps == 12
    assert_same_end(run.path, whole.path, 12)
    lineage = json.loads((run.path / "lineage.json").read_text())
    assert lineage["extensions"] == [{"step": run.state.step, "steps_before": 6, "steps": 12}]


def test_extending_a_cosine_schedule_notes_the_rise_of_the_learning_rate(
    text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(text_file, training={"steps": 6}, optimizer={"learning_rate": 0.01})
    run = api.train(config=config, out=tmp_path / "run", console=QUIET).path
    capsys.readouterr()
    assert main(["train", "--resume", str(run), "--training.steps", "12"]) == 0
    error = capsys.readouterr().err
    assert (
        "6 steps become 12; the learning rate goes from 0.0023" in error and "(cosine over 12 steps)" in error
    )
    rates = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["kind"] == "train":
            rates[record["step"]] = record["learning_rate"]
    assert rates[6] < rates[7] > rates[12]


def test_resuming_a_finished_run_first_says_that_it_is_done(
    text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = api.train(
        config=tiny_config(text_file, training={"steps": 2}), out=tmp_path / "run", console=QUIET
    ).path
    capsys.readouterr()
    assert main(["train", "--resume", str(run)]) == 0
    first = capsys.readouterr().err.splitlines()[0]
    assert "all 2 steps are done" in first and "--training.steps 4" in first


def test_minutes_are_converted_to_steps_at_the_speed_of_the_run(text_file: Path, tmp_path: Path) -> None:
    run = api.train(config=tiny_config(text_file), out=tmp_path / "run", console=QUIET)
    state = last_state(run.path)
    pace = (state.train_seconds + state.other_seconds) / 12
    longer = api.resume(run.path, minutes=20.5 * pace / 60, console=QUIET)
    assert longer.config.training.steps == longer.state.step == 32


def test_extending_restarts_early_stopping(text_file: Path, tmp_path: Path) -> None:
    config = tiny_config(
        text_file,
        optimizer={"learning_rate": 3.0, "weight_decay": 0.0},
        schedule={"kind": "constant", "warmup_steps": 40},
        training={"steps": 100},
        evaluation={"every": 2, "patience": 3},
        checkpointing={"every": 0},
    )
    run = api.train(config=config, out=tmp_path / "run", console=QUIET)
    assert "no better" in run.state.stop_reason
    again = api.resume(run.path, steps=101, console=QUIET)
    assert again.state.step == run.state.step + 6, "three more evaluations"


def test_invalid_extensions_are_rejected(
    trained_run: Path, text_file: Path, tmp_path: Path, fails: Fails
) -> None:
    before = (trained_run / "config.yaml").read_bytes(), (trained_run / "lineage.json").read_bytes()
    resume = ("train", "--resume", trained_run)
    assert "training.steps is 12, and" in fails(*resume, "--training.steps", "12")
    assert "minutes is 0" in fails(*resume, "--minutes", "0")
    assert "steps and minutes are given" in fails(*resume, "--minutes", "1", "--training.steps", "20")
    assert "accepts no text, and no options" in fails(*resume, "--training.batch-size", "20")
    assert "accepts no text, and no options" in fails(
        *resume, "--training.steps", "20", "--training.epochs", "2"
    )
    assert ((trained_run / "config.yaml").read_bytes(), (trained_run / "lineage.json").read_bytes()) == before
    model = {"architecture": "ngram", "context_length": 16}
    changes = {"model": model, "tokenizer": {"kind": "character"}, "data": {"source": [str(text_file)]}}
    counted = api.train(config=configure(changes), out=tmp_path / "run", console=QUIET)
    with pytest.raises(ConfigError, match="counted in one step"):
        api.resume(counted.path, steps=20, console=QUIET)
