"""The ladder, in seconds a rung: what is trained, kept, shown."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers import Fails, text_of
from wholegpt import ladder
from wholegpt.checks import complete_model
from wholegpt.cli import main
from wholegpt.model import parameter_count


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rung of each sort, and small models."""
    monkeypatch.setattr(ladder, "WIDTHS", (32, 48))
    some = [rung for rung in ladder.RUNGS if rung.name not in ("Elman", "GRU", "GPT-1", "GPT-2")]
    monkeypatch.setattr(ladder, "RUNGS", some)


def test_the_ladder_goes_from_uniform_to_gpt(
    short: None, charts: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
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
    last = rungs["modern"]["result"]["parameters"]
    for name in ("average", "LSTM", "modern"):
        assert rungs[name]["equal"]["parameters"] == pytest.approx(last, rel=0.1)
        assert len(rungs[name]["choice"]["tried"]) == ladder.TRIALS
        assert rungs[name]["result"]["train_flops"] > 0
    page = (tmp_path / "ladder" / "ladder.html").read_text()
    assert "<svg" in page and all(name in page for name in rungs)
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out) == climbed
    assert main([*command[:-1]]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("rung") and shown[1].startswith("uniform")


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


def test_what_cannot_be_climbed(tmp_path: Path, fails: Fails) -> None:
    (tmp_path / "text.txt").write_text(text_of(10_000))
    text = tmp_path / "text.txt"
    assert "expected a finite time above 0" in fails(
        "ladder", text, "--minutes", "0", "--out", tmp_path / "l"
    )
    message = fails("ladder", text, "--minutes", "1", "--rung", "GPT-3", "--out", tmp_path / "l")
    assert "there is no rung 'GPT-3'" in message
