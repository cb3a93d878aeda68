"""Whole training runs: resuming, early stopping, the run folder, determinism and timing."""

import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tests.helpers import text_of, tiny_config
from wholegpt import runtime
from wholegpt.checkpoint import CheckpointStore
from wholegpt.console import Console
from wholegpt.data import PreparedData, windows_before
from wholegpt.errors import Interrupted, NumericsError, RunError
from wholegpt.model import base
from wholegpt.runs import api
from wholegpt.runs import folder as run_folder
from wholegpt.runs.create import create_run
from wholegpt.settings.choices import Dtype, Execution
from wholegpt.settings.presets import recipe
from wholegpt.training import callbacks, loop
from wholegpt.training.events import Callback
from wholegpt.training.state import TrainingState

QUIET = Console(quiet=True)


def weights(run: Path, step: int) -> str:
    return hashlib.sha256((CheckpointStore(run).path(step) / "model.safetensors").read_bytes()).hexdigest()


def records(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [r for r in map(json.loads, lines) if r["kind"] == kind]


def test_files_of_a_run_folder(trained_run: Path) -> None:
    names = {str(p.relative_to(trained_run)) for p in trained_run.rglob("*") if p.is_file()}
    step = "checkpoints/step-00000012"
    assert names >= {
        "config.yaml",
        "lineage.json",
        "tokenizer.json",
        "metrics.jsonl",
        "checkpoints.json",
        "report.html",
        *(
            f"{step}/{name}"
            for name in ("model.safetensors", "config.json", "tokenizer.json", "checksums.json")
        ),
    }
    index = json.loads((trained_run / "checkpoints.json").read_text())
    assert index["last"] == 12 and index["best"] in CheckpointStore(trained_run).steps()
    assert not [name for name in names if "partial" in name]


def test_loss_decreases_and_is_logged(trained_run: Path) -> None:
    train, validation = records(trained_run, "train"), records(trained_run, "validation")
    assert [r["step"] for r in train] == list(range(1, 13))
    assert train[0]["nats_per_token"] == pytest.approx(math.log(27), abs=0.5)
    assert train[-1]["nats_per_token"] < train[0]["nats_per_token"]
    assert [r["step"] for r in validation] == [6, 12]
    assert [r["step"] for r in records(trained_run, "sample")] == [6, 12]


def test_config_yaml_repeats_the_run(trained_run: Path, tmp_path: Path) -> None:
    config = recipe(str(trained_run / "config.yaml"))
    assert config.precision.dtype is not Dtype.automatic and config.runtime.threads > 0
    assert config.model.vocab_size > 0 and config.training.steps == 12
    again = api.train(config=config, out=tmp_path / "again", console=QUIET)
    assert weights(again.path, 12) == weights(trained_run, 12)


def test_resumed_run_equals_an_uninterrupted_run(trained_run: Path, tmp_path: Path) -> None:
    config = recipe(str(trained_run / "config.yaml"))
    run = api.train(config=config, out=tmp_path / "run", max_seconds=1e-9, console=QUIET)
    assert run.state.step == 1 and "time" in run.state.stop_reason
    assert run.state.best and run.state.best.step == 1, "the last weights are evaluated, too"
    resumed = api.resume(run.path, console=QUIET)
    assert resumed.state.step == 12 and resumed.state.stop_reason == ""
    assert weights(run.path, 12) == weights(trained_run, 12)
    figures = [
        [(r["step"], r["nats_per_token"]) for r in records(p, "train")] for p in (run.path, trained_run)
    ]
    assert figures[0] == figures[1]


@pytest.mark.parametrize(
    "sections",
    [
        {
            "model": {"dropout": 0.1, "n_heads": 2, "n_kv_heads": 1},
            "optimizer": {"kind": "muon"},
            "training": {"ema_decay": 0.9, "initial_batch_size": 1, "batch_growth_steps": 7},
        },
        {"precision": {"dtype": "float16"}, "training": {"micro_batch_size": 3, "ema_decay": 0.5}},
        {
            "precision": {"dtype": "float32"},
            "training": {"activation_checkpointing": "blocks"},
            "model": {"dropout": 0.2},
        },
    ],
    ids=["muon", "float16", "activation_checkpointing"],
)
def test_every_training_setup_resumes_bit_for_bit(
    text_file: Path, tmp_path: Path, sections: dict[str, dict[str, Any]]
) -> None:
    config = tiny_config(text_file, **sections)
    whole = api.train(config=config, out=tmp_path / "whole", console=QUIET)
    cut = api.train(config=config, out=tmp_path / "cut", max_seconds=1e-9, console=QUIET)
    assert cut.state.step == 1
    resumed = api.resume(cut.path, console=QUIET)
    assert weights(cut.path, 12) == weights(whole.path, 12)
    assert resumed.validation == whole.validation and resumed.sample == whole.sample
    assert resumed.state.loss_scale == whole.state.loss_scale


def test_the_average_of_the_weights_is_measured_and_saved(text_file: Path, tmp_path: Path) -> None:
    """Compare with the average computed here from the weights of each step, saved by a run without averaging."""
    every = {"checkpointing": {"every": 1, "keep": 12}}
    plain = api.train(config=tiny_config(text_file, **every), out=tmp_path / "plain", console=QUIET)
    averaged = tiny_config(text_file, training={"ema_decay": 0.7})
    run = api.train(config=averaged, out=tmp_path / "averaged", console=QUIET)
    expected: dict[str, torch.Tensor] = {}
    for step in range(1, 13):
        tensors = safetensors.torch.load_file(CheckpointStore(plain.path).path(step) / "model.safetensors")
        beta = min(0.7, (1 + step) / (10 + step)) if expected else 0.0
        expected = {n: beta * expected.get(n, torch.zeros(())) + (1 - beta) * t for n, t in tensors.items()}
    found = run.load("last").model.state_dict()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-7)
    score = run.load("last").evaluate_tokens(
        run_folder.run_data(run.path).validation, 0, Dtype.automatic, QUIET
    )
    assert score.nats_per_token == run.validation.nats_per_token != plain.validation.nats_per_token


def test_resuming_a_finished_run_has_no_effect(trained_run: Path) -> None:
    before = weights(trained_run, 12)
    assert api.resume(trained_run, console=QUIET).state.step == 12
    assert weights(trained_run, 12) == before


def test_micro_batches_give_nearly_the_same_losses(text_file: Path, tmp_path: Path) -> None:
    losses = []
    for rows in (0, 3):
        config = tiny_config(text_file, training={"micro_batch_size": rows}, precision={"dtype": "float32"})
        run = api.train(config=config, out=tmp_path / f"run{rows}", console=QUIET)
        losses.append([r["nats_per_token"] for r in records(run.path, "train")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_steps_depend_on_corpus_and_config_only(text_file: Path, tmp_path: Path) -> None:
    config = tiny_config(text_file, training={"steps": 0, "epochs": 2.0, "batch_size": 8})
    path = create_run(config, tmp_path / "run", False, QUIET)
    tokens = len(PreparedData.open(path / "data").train)
    windows = (tokens - 16) // 16
    assert recipe(str(path / "config.yaml")).training.steps == round(2 * windows / 8)


def test_epochs_account_for_batch_growth(text_file: Path, tmp_path: Path) -> None:
    growth = {"initial_batch_size": 2, "batch_growth_steps": 30}
    config = tiny_config(text_file, training={"steps": 0, "epochs": 2.0, "batch_size": 8, **growth})
    path = create_run(config, tmp_path / "run", False, QUIET)
    training = recipe(str(path / "config.yaml")).training
    windows = (len(PreparedData.open(path / "data").train) - 16) // 16
    assert training.steps > 30
    assert windows_before(training.steps, training) == pytest.approx(2 * windows, abs=8)


def test_early_stopping_and_best_checkpoint(text_file: Path, tmp_path: Path) -> None:
    """A learning rate that destroys the model: validation loss rises, training stops, the best checkpoint is kept."""
    config = tiny_config(
        text_file,
        optimizer={"learning_rate": 3.0, "weight_decay": 0.0},
        schedule={"kind": "constant", "warmup_steps": 40},
        training={"steps": 300},
        evaluation={"every": 2, "patience": 3},
        checkpointing={"keep": 1, "every": 0},
    )
    run = api.train(config=config, out=tmp_path / "run", console=QUIET)
    assert run.state.stop_reason == "no better validation loss in 3 evaluations"
    validation = records(run.path, "validation")
    best = min(validation, key=lambda r: r["nats_per_token"])
    assert run.state.best is not None and run.state.best.step == best["step"]
    assert run.state.step == best["step"] + 6
    assert CheckpointStore(run.path).best_step() == best["step"]
    score = run.load("best").evaluate_tokens(
        run_folder.run_data(run.path).validation, 0, Dtype.automatic, QUIET
    )
    assert score.nats_per_token == pytest.approx(best["nats_per_token"], rel=1e-6)
    assert api.resume(run.path, console=QUIET).state.step == run.state.step


def test_warmup_is_decided_before_the_first_step(
    text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By default a tenth of the run; also, with a warning, instead of a warm-up as long as the run."""
    steps = "and the run has 50 steps, so the rate would not fall"
    for given, expected in ((0, ""), (48, ""), (49, f"is 49 {steps}"), (50, f"is 50 {steps}")):
        config = tiny_config(text_file, schedule={"warmup_steps": given}, training={"steps": 50})
        path = create_run(config, tmp_path / f"run-{given}", False, QUIET)
        assert recipe(str(path / "config.yaml")).schedule.warmup_steps == (48 if given == 48 else 5)
        warned = capsys.readouterr().err
        assert expected in warned and bool(expected) == bool(warned)
    config = tiny_config(text_file, schedule={"warmup_steps": 1000}, training={"steps": 0, "epochs": 1.0})
    path = create_run(config, tmp_path / "epochs", False, QUIET)
    resolved = recipe(str(path / "config.yaml"))
    assert resolved.schedule.warmup_steps == min(resolved.training.steps // 10, 20)


def test_old_checkpoints_are_pruned(text_file: Path, tmp_path: Path) -> None:
    config = tiny_config(text_file, checkpointing={"every": 1, "keep": 2}, evaluation={"every": 0})
    run = api.train(config=config, out=tmp_path / "run", console=QUIET)
    assert CheckpointStore(run.path).steps() == [11, 12]


def test_nan_loss_stops_training_and_keeps_the_last_good_checkpoint(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(text_file, checkpointing={"every": 4})
    seeded, likelihood = runtime.mix_seed, base.linear_cross_entropy
    steps: list[int] = []

    def watched(*parts: int) -> int:
        steps.append(parts[1])
        return seeded(*parts)

    def broken(*operands: torch.Tensor) -> torch.Tensor:
        nats = likelihood(*operands)
        return nats * float("nan") if steps[-1] == 6 else nats

    monkeypatch.setattr(loop, "mix_seed", watched)
    monkeypatch.setattr(base, "linear_cross_entropy", broken)
    with pytest.raises(
        NumericsError, match=r"the loss is nan at step 7; .*learning-rate.*last checkpoint is that of step 6"
    ):
        api.train(config=config, out=tmp_path / "run", console=QUIET)
    assert CheckpointStore(tmp_path / "run").last_good() == (6, [])


def test_resume_rejects_different_numerics_unless_allowed(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(text_file)
    run = api.train(config=config, out=tmp_path / "run", max_seconds=1e-9, console=QUIET)
    lineage = json.loads((run.path / "lineage.json").read_text())
    lineage["machine"]["processor"] = "another"
    (run.path / "lineage.json").write_text(json.dumps(lineage))
    with pytest.raises(NumericsError, match=r"processor another; .*--allow-different-numerics"):
        api.resume(run.path, console=QUIET)
    finished = api.resume(run.path, allow_different_numerics=True, console=QUIET)
    assert finished.state.step == 12


def test_settings_unavailable_on_this_machine_are_reported(
    text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(text_file, precision={"dtype": "bfloat16"}, runtime={"threads": 10_000})
    monkeypatch.setattr("wholegpt.runtime.decisions.has_bfloat16", lambda device: False)
    problems = runtime.check_available(config, {**runtime.machine(), "torch": "0.1"})
    assert len(problems) == 3
    assert "bfloat16" in problems[0] and "10000 threads" in problems[1] and "torch 0.1" in problems[2]
    kept = runtime.without_unavailable(config)
    assert (kept.precision.dtype, kept.runtime.threads, kept.runtime.device) == (Dtype.automatic, 0, "cpu")
    config = tiny_config(text_file, runtime={"device": "cuda:77"}, precision={"dtype": "float32"})
    assert "cuda:77, which is not here" in runtime.check_available(config, {})[0]
    kept = runtime.without_unavailable(config)
    assert (kept.precision.dtype, kept.runtime.device) == (Dtype.float32, "automatic")


def test_changed_data_is_rejected(text_file: Path, tmp_path: Path) -> None:
    path = create_run(tiny_config(text_file), tmp_path / "run", False, QUIET)
    lineage = json.loads((path / "lineage.json").read_text())
    (path / "lineage.json").write_text(json.dumps({**lineage, "data": "other"}))
    with pytest.raises(Exception, match="not the data that"):
        api.resume(path, console=QUIET)


def test_prepared_data_is_shared_by_runs(text_file: Path, tmp_path: Path) -> None:
    from wholegpt.data import open_corpus, prepare

    config = tiny_config(text_file)
    prepare(open_corpus(config.data), config.data, config.tokenizer, tmp_path / "data", QUIET)
    run = api.train(str(tmp_path / "data"), config=config, out=tmp_path / "run", console=QUIET)
    assert not (run.path / "data").exists()
    other = api.train(config=config, out=tmp_path / "other", console=QUIET)
    assert weights(run.path, 12) == weights(other.path, 12)


def test_newly_prepared_data_is_not_verified_again(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[Path] = []

    def verify(data: PreparedData) -> None:
        checked.append(data.folder)

    monkeypatch.setattr(PreparedData, "verify", verify)
    config = tiny_config(text_file, training={"steps": 2})
    own = api.train(config=config, out=tmp_path / "own", console=QUIET).path
    assert checked == []
    api.resume(own, console=QUIET)
    assert checked == [own / "data"]
    elsewhere = own / "data"  # prepared by another command, so it may have been modified
    api.train(elsewhere, config=config, out=tmp_path / "other", console=QUIET)
    assert checked[1:] == [elsewhere]


def test_run_is_overwritten_only_on_request_and_if_the_new_run_can_start(
    text_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    api.train(config=tiny_config(text_file), out=out, console=QUIET)
    before = weights(out, 12)
    with pytest.raises(RunError, match="already holds a run"):
        api.train(config=tiny_config(text_file), out=out, console=QUIET)
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(Exception, match="holds no text"):
        api.train(config=tiny_config(tmp_path / "empty.txt"), out=out, overwrite=True, console=QUIET)
    assert weights(out, 12) == before
    api.train(config=tiny_config(text_file, runtime={"seed": 3}), out=out, overwrite=True, console=QUIET)
    assert weights(out, 12) != before


def test_seed_changes_the_weights(text_file: Path, trained_run: Path, tmp_path: Path) -> None:
    config = tiny_config(text_file, runtime={"seed": 99})
    run = api.train(config=config, out=tmp_path / "run", console=QUIET)
    assert weights(run.path, 12) != weights(trained_run, 12)


def test_strict_determinism_trains_with_a_warning_about_speed(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    try:
        config = tiny_config(text_file, runtime={"determinism": "strict"})
        api.train(config=config, out=tmp_path / "run", console=Console())
        assert "on a GPU the steps are slower" in capsys.readouterr().err
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)


def test_metrics_after_the_resumed_step_are_removed(tmp_path: Path) -> None:
    log = callbacks.MetricsLog(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3):
        log.append("train", step, {"x": step})
    with log.path.open("a") as file:
        file.write('{"kind": "train", "st')
    log.rewind(2)
    assert [r["step"] for r in log.read()] == [1, 2]


def test_interruption_between_steps(text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signals: list[callbacks.StopOnSignal] = []
    original = callbacks.StopOnSignal.__enter__

    def enter(self: callbacks.StopOnSignal) -> callbacks.StopOnSignal:
        signals.append(self)
        return original(self)

    class Press(Callback):
        is_training = True

        def __init__(self, *arguments: object) -> None: ...

        def after_step(self, state: TrainingState, metrics: object) -> None:
            if state.step == 5:
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(callbacks.StopOnSignal, "__enter__", enter)
    monkeypatch.setattr(callbacks, "LogMetrics", Press)
    with pytest.raises(
        Interrupted, match=r"saved after step 5 of 12; continue with `wholegpt train --resume"
    ):
        api.train(config=tiny_config(text_file), out=tmp_path / "run", console=QUIET)
    assert CheckpointStore(tmp_path / "run").last_good() == (5, [])


def test_ctrl_c_on_the_command_line(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(text_of(4000))
    options = "--training.steps 100000 --model.d-model 16 --model.n-heads 2 --model.context-length 16"
    command = [sys.executable, "-m", "wholegpt.cli", "train", str(text), "--out", str(tmp_path / "run")]
    process = subprocess.Popen(
        [*command, *options.split(), "--tokenizer.kind", "byte"], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    log = tmp_path / "run" / "metrics.jsonl"
    while not (log.exists() and log.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "continue with `wholegpt train --resume" in errors.splitlines()[-1]
    assert CheckpointStore(tmp_path / "run").last_good()[0] is not None


def test_training_time_excludes_only_evaluation_samples_and_saving(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """12 steps, with a second in each of two evaluations and a tenth of a second in each logged line."""
    evaluate, append = callbacks.Validate.run, callbacks.MetricsLog.append

    def slow_evaluation(self: callbacks.Validate, state: TrainingState) -> None:
        time.sleep(1)
        evaluate(self, state)

    def slow_line(self: callbacks.MetricsLog, kind: str, step: int, values: dict[str, Any]) -> None:
        time.sleep(0.1 * (kind == "train"))
        append(self, kind, step, values)

    monkeypatch.setattr(callbacks.Validate, "run", slow_evaluation)
    monkeypatch.setattr(callbacks.MetricsLog, "append", slow_line)
    started = time.perf_counter()
    run = api.train(config=tiny_config(text_file), out=tmp_path / "run", console=QUIET)
    whole = time.perf_counter() - started
    assert run.state.other_seconds > 2
    assert run.state.train_seconds > 1.2
    assert run.state.train_seconds + run.state.other_seconds < whole


def run_in_a_subprocess(
    text: Path, out: Path, execution: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Train without shape checks, which compilation does not support."""
    options = "--model.d-model 16 --model.n-heads 2 --model.n-layers 1 --model.context-length 16 --quiet"
    options += " --training.steps 5 --tokenizer.kind byte --logging.sample-tokens 0 --logging.every 1"
    command = [sys.executable, "-m", "wholegpt.cli", "train", str(text), "--out", str(out), *options.split()]
    command += ["--precision.dtype", "float32", "--precision.execution", execution]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})


@pytest.mark.slow
@pytest.mark.skipif(
    " " in torch.__file__, reason="PyTorch's compiler cannot link where its own path holds a space"
)
def test_compiled_run_has_the_losses_of_an_eager_run(text_file: Path, tmp_path: Path) -> None:
    losses: list[list[float]] = []
    for execution in ("eager", "compiled"):
        process = run_in_a_subprocess(text_file, tmp_path / execution, execution)
        assert process.returncode == 0, process.stderr
        losses.append([r["nats_per_token"] for r in records(tmp_path / execution, "train")])
    assert len(losses[0]) == 5
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_training_without_a_compiler_is_eager_with_one_note(text_file: Path, tmp_path: Path) -> None:
    process = run_in_a_subprocess(
        text_file, tmp_path / "run", "compiled", CXX="false", TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache")
    )
    assert process.returncode == 0, process.stderr
    lines = [line for line in process.stderr.splitlines() if "compiling fails here" in line]
    assert len(lines) == 1 and "training runs operation by operation instead" in lines[0]
    assert recipe(str(tmp_path / "run")).precision.execution is Execution.eager


def test_bytes_are_those_of_the_original_text(tmp_path: Path) -> None:
    """For a tokenizer that normalizes spaces, in training and in evaluation."""
    text = text_of(6000).replace(" ", "   ").replace("the", "The")
    (tmp_path / "t.txt").write_text(text)
    config = tiny_config(tmp_path / "t.txt", tokenizer={"kind": "gpt1", "merges": 50})
    run = api.train(config=config, out=tmp_path / "run", console=QUIET)
    held_out = len(text) - int(len(text) * 0.9)
    assert run.validation.bytes == pytest.approx(held_out, abs=8)  # without the first token
    again = run.load("last").evaluate_tokens(
        run_folder.run_data(run.path).validation, 0, Dtype.automatic, QUIET
    )
    assert again.bytes == run.validation.bytes and again.characters == run.validation.characters
