"""Experiment trackers receive the logged metrics, and cannot affect the run."""

import contextlib
import importlib
import importlib.util
import json
import os
import signal
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import tiny_config
from wholegpt.checkpoint import CheckpointStore
from wholegpt.console import Console
from wholegpt.errors import ConfigError
from wholegpt.runs import api
from wholegpt.settings.choices import Tracker
from wholegpt.settings.presets import configure
from wholegpt.settings.schema import Config
from wholegpt.training import trackers, tracking
from wholegpt.training.events import Callback, StepMetrics
from wholegpt.training.state import TrainingState
from wholegpt.training.tracking import Tracking

QUIET = Console(quiet=True)
Points = dict[str, list[tuple[int, float]]]


def logged(run: Path) -> Points:
    """Return the points that a tracker should have, from the log of the run."""
    points: Points = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        kind, step = record.pop("kind"), record.pop("step")
        if kind != "sample":
            for name, value in record.items():
                points.setdefault(f"{kind}/{name}", []).append((step, value))
    return points


def in_tensorboard(run: Path) -> Points:
    """Return the points shown by TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    shown.Reload()
    assert [tag for tag in shown.Tags()["tensors"] if tag != "config"] == []
    return {tag: [(e.step, e.value) for e in shown.Scalars(tag)] for tag in shown.Tags()["scalars"]}


def assert_equal(shown: Points, expected: Points, rel: float = 1e-7) -> None:
    assert shown.keys() == expected.keys()
    for name, points in expected.items():
        assert [step for step, _ in shown[name]] == [step for step, _ in points], name
        assert [x for _, x in shown[name]] == pytest.approx([x for _, x in points], rel=rel), name


def weights(run: Path, step: int = 12) -> bytes:
    return (CheckpointStore(run).path(step) / "model.safetensors").read_bytes()


def tracked(source: Path | str, *names: str) -> Config:
    return tiny_config(source, logging={"trackers": list(names)})


# --- TensorBoard -------------------------------------------------------------------------------------


def test_tensorboard_shows_the_log(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = api.train(config=tracked(trained_run.parent / "text.txt", "tensorboard"), out=tmp_path / "run").path
    points = logged(run)
    assert {"train/nats_per_token", "train/gradient_norm", "validation/bits_per_byte"} < points.keys()
    assert len(points["train/nats_per_token"]) == 12 and len(points["validation/nats_per_token"]) == 2
    assert_equal(in_tensorboard(run), points)
    assert weights(run) == weights(trained_run)
    assert f"tracker tensorboard: tensorboard --logdir {run / 'tensorboard'}" in capsys.readouterr().err
    files = list((run / "tensorboard").iterdir())
    api.resume(run, console=QUIET)
    assert list((run / "tensorboard").iterdir()) == files, "a finished run starts no tracker"


def test_resumed_run_continues_in_tensorboard(text_file: Path, tmp_path: Path) -> None:
    run = api.train(
        config=tracked(text_file, "tensorboard"), out=tmp_path / "run", max_seconds=1e-9, console=QUIET
    ).path
    assert_equal(in_tensorboard(run), logged(run))
    api.resume(run, console=QUIET)
    assert len(logged(run)["train/nats_per_token"]) == 12
    assert_equal(in_tensorboard(run), logged(run))


KILLED = """
import os, signal, sys, time
import wholegpt as wg
class Kill(wg.Callback):
    def after_step(self, state, metrics):
        if state.step == int(sys.argv[2]):
            time.sleep(float(sys.argv[3]))
            os.kill(os.getpid(), signal.SIGKILL)
wg.resume(sys.argv[1], callbacks=[Kill()])
"""


def kill_at(run: Path, step: int, wait: float) -> None:
    """Resume a run in a process that is killed ``wait`` seconds after a step."""
    command = [sys.executable, "-c", KILLED, str(run), str(step), str(wait)]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL


def test_repeated_steps_are_replaced_in_tensorboard(text_file: Path, tmp_path: Path) -> None:
    """A run fails before its first checkpoint and is killed after it; the repeated steps have new timestamps."""

    class Broken(Callback):
        def after_step(self, state: TrainingState, metrics: StepMetrics) -> None:
            if state.step == 3:
                raise KeyError

    config, run = tracked(text_file, "tensorboard"), tmp_path / "run"
    with pytest.raises(KeyError):
        api.train(config=config, out=run, callbacks=[Broken()], console=QUIET)
    assert len(in_tensorboard(run)["train/nats_per_token"]) == 3
    kill_at(run, 7, wait=1)
    before = logged(run)["train/train_seconds"]
    assert [step for step, _ in before] == [1, 2, 3, 4, 5, 6, 7]
    api.resume(run, console=QUIET)
    assert logged(run)["train/train_seconds"][6] != before[6]
    assert len(list((run / "tensorboard").iterdir())) == 3
    assert_equal(in_tensorboard(run), logged(run))


def test_evaluation_of_the_parent_is_at_step_0(trained_run: Path, tmp_path: Path) -> None:
    config = configure(
        {
            "training": {"steps": 2},
            "logging": {"sample_tokens": 0, "trackers": ["tensorboard"]},
            "runtime": {"device": "cpu"},
        }
    )
    text = trained_run.parent / "text.txt"
    run = api.finetune(
        trained_run, text, task="pretraining", config=config, out=tmp_path / "run", console=QUIET
    )
    assert in_tensorboard(run.path)["validation/nats_per_token"][0][0] == 0
    assert_equal(in_tensorboard(run.path), logged(run.path))


def test_overwriting_run_has_only_its_own_points(text_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = api.train(config=tracked(text_file, "tensorboard"), out=out, console=QUIET)
    number = (out / "trackers.json").read_text()
    for name in ("tensorboard", "wandb"):
        (out / name).mkdir(exist_ok=True)
        (out / name / "notes.txt").write_text("of the user")
    shorter = configure({"training": {"steps": 5}}, base=first.config)
    api.train(config=shorter, out=out, overwrite=True, console=QUIET)
    assert_equal(in_tensorboard(out), logged(out))
    assert len(logged(out)["train/nats_per_token"]) == 5
    assert (out / "trackers.json").read_text() != number
    assert all((out / name / "notes.txt").exists() for name in ("tensorboard", "wandb"))


# --- Failing trackers ---------------------------------------------------------------------------------

WAYS = {
    "raises": "raise RuntimeError('out of order' + 500 * '!' + chr(10) + 'at all.')",
    "hangs": "time.sleep(1000)",
    "crashes": "os.kill(os.getpid(), 11)",
    "exits": "sys.exit(3)",
}
EVENTS = ("import", "init", "log", "finish")


def fake(folder: Path, name: str, event: str, way: str) -> None:
    """Write a fake tracker package that misbehaves in one event and prints in all of them."""
    does = {one: way if one == event else "pass" for one in EVENTS}
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(
        f"""
import os, sys, time
print("noise"); print("noise", file=sys.stderr)
{does["import"]}
class Settings:
    def __init__(self, **settings): pass
class Run:
    offline, url = False, "https://example.org"
    def log(self, metrics, step):
        os.write(1, b"noise")
        {does["log"]}
    def finish(self, exit_code):
        {does["finish"]}
def init(**settings):
    {does["init"]}
    return Run()
"""
    )


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages that the tracker processes import first."""
    here = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "fakes"), *([here] if here else [])]))
    return tmp_path / "fakes"


@pytest.mark.parametrize("fails", [False, True])
def test_wandb_gets_the_exit_code_of_the_run(fails: bool, fakes: Path, tmp_path: Path) -> None:
    fake(fakes, "wandb", "finish", f"open({str(tmp_path / 'code')!r}, 'w').write(str(exit_code))")
    with (
        pytest.raises(ZeroDivisionError) if fails else contextlib.nullcontext(),
        Tracking(tmp_path, [Tracker("wandb")], [], Console()) as callback,
    ):
        callback.at_start(TrainingState(), configure({}))
        callback.after_log(TrainingState(), {"kind": "train", "step": 1, "loss": 1 / (not fails)})
    assert (tmp_path / "code").read_text() == str(int(fails))


def track(folder: Path, records: int = 3, name: str = "wandb") -> float:
    """Send some records to a tracker, and return the seconds from the last one to the end."""
    with Tracking(folder, [Tracker(name)], [], Console()) as callback:
        callback.at_start(TrainingState(), configure({}))
        for step in range(1, records + 1):
            callback.after_log(TrainingState(), {"kind": "train", "step": step, "loss": 1 / step})
        ended = time.monotonic()
    return time.monotonic() - ended


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("event", EVENTS)
def test_failing_tracker_gives_one_warning(
    event: str,
    way: str,
    fakes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    limit = 1.5 if way == "hangs" else 20.0
    monkeypatch.setattr(tracking, "CLOSING_SECONDS", limit)
    fake(fakes, "wandb", event, WAYS[way])
    assert track(tmp_path) < limit + 1
    out, err = capfd.readouterr()
    warnings = [line for line in err.splitlines() if line.startswith("warning: ")]
    notes = ("warning: ", "tracker wandb: https://example.org", "waiting for wandb")
    assert out == "" and all(line.startswith(notes) for line in err.splitlines())
    expected = {
        "raises": "RuntimeError: out of order!!!",
        "hangs": "not done 2 s after training; metrics may be missing",
        "crashes": "its process ended with exit code -11",
        "exits": "SystemExit: 3",
    }
    assert len(warnings) == 1 and warnings[0].startswith(f"warning: tracker wandb: {expected[way]}")
    assert warnings[0].endswith("; training is not affected") and len(warnings[0]) < 400


def test_failing_trackers_do_not_change_the_weights(
    trained_run: Path,
    fakes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(tracking, "CLOSING_SECONDS", 1.0)
    fake(fakes, "tensorboard", "import", WAYS["raises"])
    fake(fakes, "wandb", "log", WAYS["hangs"])
    fake(fakes, "trackio", "log", WAYS["crashes"])
    started = time.monotonic()
    config = tracked(trained_run.parent / "text.txt", *Tracker)
    run = api.train(config=config, out=tmp_path / "run", console=QUIET)
    assert time.monotonic() - started < 30
    assert weights(run.path) == weights(trained_run)
    err = capsys.readouterr().err.splitlines()
    assert sorted(line.split(":")[1].strip() for line in err) == [f"tracker {n}" for n in sorted(Tracker)]


def test_missing_package_is_reported_with_the_install_command(
    fakes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake(
        fakes, "trackio", "import", "raise ModuleNotFoundError(\"No module named 'trackio'\", name='trackio')"
    )
    track(tmp_path, name="trackio")
    assert capsys.readouterr().err == (
        "warning: tracker trackio: trackio is not installed; pip install 'wholegpt[trackio]'; "
        "training is not affected\n"
    )


def test_tracker_that_does_not_read_is_dropped(
    fakes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracking, "MOST_WAITING_BYTES", 100_000)
    fake(fakes, "wandb", "init", WAYS["hangs"])
    started = time.monotonic()
    assert track(tmp_path, records=10_000) < 1
    assert time.monotonic() - started < 10
    assert "warning: tracker wandb: does not read its metrics" in capsys.readouterr().err


def test_no_tracker_process_is_left_behind(
    fakes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Including processes started by the tracker."""
    monkeypatch.setattr(tracking, "CLOSING_SECONDS", 1.5)
    noted = tmp_path / "process"
    note = f"open({str(noted)!r}, 'w').write(str(subprocess.Popen(['sleep', '1000']).pid))"
    fake(fakes, "wandb", "log", f"import subprocess; {note}; time.sleep(1000)")
    assert track(tmp_path) > 1
    with pytest.raises(ProcessLookupError):
        for _ in range(100):
            os.kill(int(noted.read_text()), 0)
            if Path(f"/proc/{noted.read_text()}/stat").read_text().split()[2] == "Z":
                raise ProcessLookupError
            time.sleep(0.05)


def test_tensorboard_needs_neither_pytorch_nor_tensorflow(fakes: Path, tmp_path: Path) -> None:
    fakes.mkdir()
    for name in ("torch", "tensorflow"):
        (fakes / f"{name}.py").write_text(f"open({str(tmp_path / name)!r}, 'w')")
    track(tmp_path, name="tensorboard")
    assert in_tensorboard(tmp_path)["train/loss"][-1] == (3, pytest.approx(1 / 3))
    assert not (tmp_path / "torch").exists() and not (tmp_path / "tensorflow").exists()


# --- Other trackers, if they are installed -----------------------------------------------------------


def in_wandb(run: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield the points in the files that W&B writes offline: LevelDB's log format with protocol buffers."""
    records = importlib.import_module("wandb.proto.wandb_internal_pb2")
    for path in sorted((run / "wandb").glob("offline-run-*/*.wandb")):
        content, offset, message = path.read_bytes(), 7, b""
        while offset + 7 <= len(content):
            left = 2**15 - offset % 2**15
            if left < 7:
                offset += left
                continue
            _, length, kind = struct.unpack_from("<IHB", content, offset)
            message += content[offset + 7 : offset + 7 + length]
            offset += 7 + length
            if kind in (1, 4):  # whole, or its last part
                record = records.Record.FromString(message)
                message = b""
                if record.WhichOneof("record_type") == "history":
                    items = {(one.key or one.nested_key[0]): one.value_json for one in record.history.item}
                    metrics = {name: json.loads(value) for name, value in items.items() if name[0] != "_"}
                    yield record.history.step.num, metrics


def in_trackio(folder: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield the points in the database of trackio."""
    with sqlite3.connect(folder / "wholegpt.db") as database:
        for step, metrics in database.execute("SELECT step, metrics FROM metrics ORDER BY id"):
            yield step, json.loads(metrics)
    database.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_each_point_is_sent_once(
    name: str, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a run that is stopped, killed and resumed; repeated steps keep their first metrics."""
    if not importlib.util.find_spec(name):
        pytest.skip(f"{name} is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    run = api.train(config=tracked(text_file, name), out=tmp_path / "run", max_seconds=1e-9, console=QUIET)
    number = (run.path / "trackers.json").read_text()
    kill_at(run.path, 7, wait=10)
    time.sleep(5)  # the tracker continues until it has written all its records
    api.resume(run.path, console=QUIET)
    assert (run.path / "trackers.json").read_text() == number
    shown: Points = {}
    for step, metrics in in_wandb(run.path) if name == "wandb" else in_trackio(tmp_path / "trackio"):
        for figure, value in metrics.items():
            shown.setdefault(figure, []).append((step, value))
    timed = ("train/tokens_per_second", "train/train_seconds", "validation/train_seconds")
    points = logged(run.path)
    for figure in timed:
        assert [step for step, _ in shown.pop(figure)] == [step for step, _ in points.pop(figure)]
    assert_equal(shown, points, rel=1e-12)


# --- Settings ----------------------------------------------------------------------------------------


def test_settings_list_all_trackers() -> None:
    assert list(trackers.TRACKERS) == list(Tracker)
    with pytest.raises(ConfigError, match=r"logging\.trackers: there is no value 'tensorbord'; did you mean"):
        configure({"logging": {"trackers": ["tensorbord"]}})


def test_only_numeric_metrics_of_training_and_validation_are_sent() -> None:
    record: dict[str, Any] = {"kind": "train", "step": 3, "loss": 1.5, "norm": None, "tokens": 7, "x": "text"}
    assert trackers.metrics_of(record) == {"train/loss": 1.5, "train/tokens": 7}
    assert trackers.metrics_of({"kind": "sample", "step": 3, "text": "a"}) == {}
