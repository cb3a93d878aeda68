"""The ladder, in seconds a rung: what is trained, kept, shown."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import Fails, text_of
from wholegpt.cli import main
from wholegpt.console import Console
from wholegpt.data import PreparedData
from wholegpt.errors import NumericsError
from wholegpt.experiments import ladder
from wholegpt.model import parameter_count
from wholegpt.settings.schema import Config
from wholegpt.settings.validation import complete_model


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rung of each sort, and small models."""
    monkeypatch.setattr(ladder, "WIDTHS", (32, 48))
    some = [rung for rung in ladder.RUNGS if rung.name not in ("Elman", "GRU", "GPT-1", "GPT-2")]
    monkeypatch.setattr(ladder, "RUNGS", some)


def test_the_ladder_goes_from_uniform_to_gpt(
    short: None, charts: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], fails: Fails
) -> None:
    """One table of the rungs; a second call changes nothing and trains nothing."""
    (tmp_path / "text.txt").write_text(text_of(40_000))
    command = ["ladder", str(tmp_path / "text.txt"), "--minutes", "0.02", "--out", str(tmp_path / "ladder")]
    command += [
        "--tokenizer.kind",
        "character",
        "--model.context-length",
        "32",
        "--quiet",
        "--logging.sample-tokens",
        "4",
        "--json",
    ]
    assert main(command) == 0
    out = capsys.readouterr().out
    climbed = json.loads(out)
    rungs = {one["name"]: one for one in climbed["rungs"]}
    assert list(rungs) == [rung.name for rung in ladder.RUNGS]
    bits = {name: one["result"]["bits_per_byte"] for name, one in rungs.items()}
    assert bits["uniform"] > bits["unigram"] > bits["n-gram"]
    assert all(value < bits["uniform"] for name, value in bits.items() if name != "uniform")
    for one in rungs.values():
        low, high = one["result"]["intervals"]["bits_per_byte"]
        assert low < one["result"]["bits_per_byte"] < high or one["name"] == "uniform"
    last = rungs["modern"]["result"]["parameters"]
    for name in ("average", "LSTM", "modern"):
        assert rungs[name]["equal"]["parameters"] == pytest.approx(last, rel=0.1)
        assert len(rungs[name]["tried"]) == 4
        assert rungs[name]["result"]["train_flops"] > 0
    page = (tmp_path / "ladder" / "ladder.html").read_text()
    assert "<svg" in page and all(name in page for name in rungs)
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out) == climbed
    assert main([*command[:-1]]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("rung") and shown[1].startswith("uniform")
    message = fails(*[one if one != "0.02" else "0.03" for one in command[:-1]])
    assert "was begun with minutes: 0.02, not minutes: 0.03; give the same, or another --out" in message


def test_the_size_of_the_last_rung_decides_the_equal_one(short: None, tmp_path: Path) -> None:
    """Whichever rungs an earlier call in the same folder had."""
    (tmp_path / "text.txt").write_text(text_of(20_000))
    command = ["ladder", str(tmp_path / "text.txt"), "--minutes", "0.005", "--out", str(tmp_path / "l")]
    command += ["--tokenizer.kind", "character", "--model.context-length", "16", "--quiet"]
    for rungs in (["average"], ["average", "LSTM"]):
        assert main([*command, *(part for rung in rungs for part in ("--rung", rung))]) == 0
        done = json.loads((tmp_path / "l" / "ladder.json").read_text())["rungs"]
        wanted = done[-1]["result"]["parameters"]
        assert done[0]["equal"]["parameters"] == pytest.approx(wanted, rel=0.2)


def test_a_trial_that_diverges_is_not_chosen(
    short: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: Fails
) -> None:
    (tmp_path / "text.txt").write_text(text_of(40_000))
    real = ladder._trial_nats

    def diverging(config: Config, data: PreparedData, console: Console) -> float:
        if config.optimizer.learning_rate in diverges:
            raise NumericsError("the loss is nan")
        return real(config, data, console)

    monkeypatch.setattr(ladder, "_trial_nats", diverging)
    command = ["ladder", str(tmp_path / "text.txt"), "--minutes", "0.05", "--rung", "LSTM", "--quiet"]
    command += ["--tokenizer.kind", "character", "--model.context-length", "16"]
    diverges = ladder.LEARNING_RATES[:1]
    assert main([*command, "--out", str(tmp_path / "some"), "--json"]) == 0
    diverges = ladder.LEARNING_RATES
    assert "LSTM: every trial diverged" in fails(*command, "--out", str(tmp_path / "all"))
    (rung,) = json.loads((tmp_path / "some" / "ladder.json").read_text())["rungs"]
    assert rung["result"]["learning_rate"] == ladder.LEARNING_RATES[1]
    assert [one[2] is None for one in rung["tried"]] == [True, False, True, False]


@pytest.mark.parametrize("rung", [rung for rung in ladder.RUNGS if rung.of_width], ids=lambda rung: rung.name)
def test_the_width_of_a_size(rung: ladder.Rung) -> None:
    """The one that comes nearest of all, found without trying them all."""
    assert rung.of_width
    sizes = {"vocab_size": 50, "context_length": 32}
    counts = {
        width: parameter_count(complete_model(replace(rung.of_width(width), **sizes))).total
        for width in range(32, 640, 8)
    }
    assert list(counts.values()) == sorted(counts.values())
    for wanted in (10_000, 123_456, 1_000_000):
        found = ladder.width_of_size(rung.of_width, wanted, **sizes)
        assert found == min(counts, key=lambda width: abs(math.log(counts[width] / wanted)))


def test_an_interrupted_ladder_goes_on(
    short: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text(text_of(40_000))
    command = ["ladder", str(tmp_path / "text.txt"), "--minutes", "0.01", "--out", str(tmp_path / "l")]
    command += ["--rung", "unigram", "--rung", "lstm", "--tokenizer.kind", "character"]
    real, trained = ladder._train, list[str]()

    def interrupted(rung: ladder.Rung, *rest: Any) -> ladder.Result:
        trained.append(rung.name)
        if trained == ["unigram", "LSTM"]:
            raise KeyboardInterrupt
        return real(rung, *rest)

    monkeypatch.setattr(ladder, "_train", interrupted)
    assert main(command) == 130
    error = capsys.readouterr().err
    assert f"interrupted; what is done is kept in {tmp_path / 'l'}, and the same command goes on" in error
    first = (tmp_path / "l" / "unigram" / "result.json").stat().st_mtime_ns
    assert main([*command, "--quiet"]) == 0
    assert (tmp_path / "l" / "unigram" / "result.json").stat().st_mtime_ns == first
    assert (tmp_path / "l" / "ladder.html").exists()


def test_what_cannot_be_climbed(tmp_path: Path, fails: Fails) -> None:
    (tmp_path / "text.txt").write_text(text_of(10_000))
    text = tmp_path / "text.txt"
    assert "expected a finite time above 0" in fails(
        "ladder", text, "--minutes", "0", "--out", tmp_path / "l"
    )
    message = fails("ladder", text, "--minutes", "1", "--rung", "GPT-3", "--out", tmp_path / "l")
    assert "there is no rung 'GPT-3'" in message
    message = fails("ladder", text, "--minutes", "1", "--model.d-model", "64", "--out", tmp_path / "l")
    assert "the ladder decides model.d_model itself; leave it out" in message
    assert not (tmp_path / "l").exists()
