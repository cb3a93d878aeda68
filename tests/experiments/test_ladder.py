"""The baseline ladder with a few seconds per baseline: training, saved results, output."""

import json
import math
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import Fails, text_of
from wholegpt.cli import main
from wholegpt.console import Console
from wholegpt.data import PreparedData, open_corpus, prepare
from wholegpt.errors import ConfigError, NumericsError
from wholegpt.experiments import ladder
from wholegpt.experiments.baselines import BASELINES, Baseline, width_of_size
from wholegpt.model import parameter_count
from wholegpt.planning import Budget
from wholegpt.planning.machine import Rates
from wholegpt.planning.trial import Trial
from wholegpt.settings.presets import configure, recipe
from wholegpt.settings.schema import Config
from wholegpt.settings.validation import complete_model

QUIET = Console(quiet=True)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """One baseline of each kind, small models, and half a second of training."""
    monkeypatch.setattr(ladder, "WIDTHS", (32, 48))
    monkeypatch.setattr(ladder, "_measured_seconds", lambda *_: 0.5)
    some = [one for one in ladder.BASELINES if one.name not in ("Elman", "GRU", "GPT-1", "GPT-2")]
    monkeypatch.setattr(ladder, "BASELINES", some)


@pytest.mark.slow
def test_ladder_from_uniform_to_gpt(
    short: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], fails: Fails
) -> None:
    """The baselines form one table; a second call changes and trains nothing."""
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
    compared = json.loads(out)
    baselines = {one["name"]: one for one in compared["baselines"]}
    assert list(baselines) == [one.name for one in ladder.BASELINES]
    bits = {name: one["result"]["bits_per_byte"] for name, one in baselines.items()}
    assert bits["uniform"] > bits["unigram"] > bits["n-gram"]
    assert all(value < bits["uniform"] for name, value in bits.items() if name != "uniform")
    for one in baselines.values():
        low, high = one["result"]["intervals"]["bits_per_byte"]
        assert low < one["result"]["bits_per_byte"] < high or one["name"] == "uniform"
    last = baselines["modern"]["result"]["parameters"]
    for name in ("average", "LSTM", "modern"):
        assert baselines[name]["equal"]["parameters"] == pytest.approx(last, rel=0.1)
        assert len(baselines[name]["tried"]) == 4
        assert baselines[name]["result"]["train_flops"] > 0
    page = (tmp_path / "ladder" / "ladder.html").read_text()
    assert "<svg" in page and all(name in page for name in baselines)
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out) == compared
    assert main([*command[:-1]]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("Model") and shown[1].startswith("uniform")
    message = fails(*[one if one != "0.02" else "0.03" for one in command[:-1]])
    assert (
        "was created with minutes: 0.02, not minutes: 0.03; use the same settings, or another --out"
        in message
    )


@pytest.mark.slow
def test_last_baseline_determines_the_common_size(short: None, tmp_path: Path) -> None:
    """Independent of the baselines of an earlier call in the same folder."""
    (tmp_path / "text.txt").write_text(text_of(20_000))
    command = ["ladder", str(tmp_path / "text.txt"), "--minutes", "0.005", "--out", str(tmp_path / "l")]
    command += ["--tokenizer.kind", "character", "--model.context-length", "16", "--quiet"]
    for names in (["average"], ["average", "LSTM"]):
        assert main([*command, *(part for name in names for part in ("--baseline", name))]) == 0
        done = json.loads((tmp_path / "l" / "ladder.json").read_text())["baselines"]
        wanted = done[-1]["result"]["parameters"]
        vocab_size = PreparedData.open(tmp_path / "l" / "data").tokenizer.vocab_size
        average = next(one for one in BASELINES if one.name == "average")
        assert average.of_width
        configs = [
            replace(average.of_width(width), vocab_size=vocab_size, context_length=16)
            for width in range(32, 257, 8)  # a smaller model than that of 32 does not exist
        ]
        sizes = [parameter_count(complete_model(config)).total for config in configs]
        closest = min(sizes, key=lambda size: abs(math.log(size / wanted)))
        assert done[0]["equal"]["parameters"] == closest


def test_diverging_trial_is_not_chosen(
    short: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text(text_of(40_000))
    real = ladder._trial_nats

    def diverging(config: Config, data: PreparedData, console: Console) -> float:
        if config.optimizer.learning_rate in diverges:
            raise NumericsError("the loss is nan")
        return real(config, data, console)

    monkeypatch.setattr(ladder, "_trial_nats", diverging)
    command = ["ladder", str(tmp_path / "text.txt"), "--minutes", "0.05", "--baseline", "LSTM", "--quiet"]
    command += ["--tokenizer.kind", "character", "--model.context-length", "16"]
    diverges = ladder.LEARNING_RATES[:1]
    assert main([*command, "--out", str(tmp_path / "some"), "--json"]) == 0
    diverges = ladder.LEARNING_RATES
    assert main([*command, "--out", str(tmp_path / "all")]) == 2
    # On a busy machine, warnings about the time precede it.
    assert capsys.readouterr().err.splitlines()[-1].startswith("wholegpt: LSTM: all trials diverged")
    (one,) = json.loads((tmp_path / "some" / "ladder.json").read_text())["baselines"]
    assert one["result"]["learning_rate"] == ladder.LEARNING_RATES[1]
    assert [trial[2] is None for trial in one["tried"]] == [True, False, True, False]


@pytest.mark.parametrize("baseline", [one for one in BASELINES if one.of_width], ids=lambda one: one.name)
def test_width_for_a_size_is_the_closest(baseline: Baseline) -> None:
    """The closest of all widths is found without trying them all."""
    assert baseline.of_width
    sizes = {"vocab_size": 50, "context_length": 32}
    counts = {
        width: parameter_count(complete_model(replace(baseline.of_width(width), **sizes))).total
        for width in range(32, 640, 8)
    }
    assert list(counts.values()) == sorted(counts.values())
    for wanted in (10_000, 123_456, 1_000_000):
        found = width_of_size(baseline.of_width, wanted, **sizes)
        assert found == min(counts, key=lambda width: abs(math.log(counts[width] / wanted)))


def test_interrupted_ladder_continues(
    short: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text(text_of(40_000))
    command = ["ladder", str(tmp_path / "text.txt"), "--minutes", "0.01", "--out", str(tmp_path / "l")]
    command += ["--baseline", "unigram", "--baseline", "lstm", "--tokenizer.kind", "character"]
    real, trained = ladder._train, list[str]()

    def interrupted(baseline: Baseline, *rest: Any) -> ladder.Result:
        trained.append(baseline.name)
        if trained == ["unigram", "LSTM"]:
            raise KeyboardInterrupt
        return real(baseline, *rest)

    monkeypatch.setattr(ladder, "_train", interrupted)
    assert main(command) == 130
    error = capsys.readouterr().err
    assert (
        f"interrupted; finished results are kept in {tmp_path / 'l'}, and the same command continues" in error
    )
    first = (tmp_path / "l" / "unigram" / "result.json").stat().st_mtime_ns
    assert main([*command, "--quiet"]) == 0
    assert (tmp_path / "l" / "unigram" / "result.json").stat().st_mtime_ns == first
    assert (tmp_path / "l" / "ladder.html").exists()


def test_time_is_divided_among_the_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two networks with two widths and two learning rates: six trials of an eighth each, and two training runs."""
    (tmp_path / "text.txt").write_text(text_of(20_000))
    rates = Rates(step_seconds=0.1, validation_tokens_per_second=1e4, sample_tokens_per_second=100)
    monkeypatch.setattr(ladder, "run_trial", lambda *_, **__: Trial(rates, {}))
    config = configure(
        {"data": {"source": [str(tmp_path / "text.txt")]}, "tokenizer": {"kind": "character"}},
        base=recipe("ladder"),
    )
    corpus = open_corpus(config.data)
    data = prepare(corpus, config.data, config.tokenizer, tmp_path / "data", QUIET)
    networks = [one for one in BASELINES if one.of_width][:2]
    ngrams = [one for one in BASELINES if one.of_width is None]

    def seconds(minutes: float) -> float:
        return ladder._measured_seconds(
            [*ngrams, *networks], config, data, Budget(minutes, time.monotonic()), QUIET
        )

    scored = 6 * ladder.TRIAL_TOKENS + 2 * ladder.EVALUATIONS * len(data.validation)
    other = 2 * (8 * 6 * 0.1 + scored / 1e4 + 2 * ladder.RUN_SECONDS)
    assert seconds(10) == pytest.approx((600 - other) / (2 * 2.75), abs=0.1)
    with pytest.raises(
        ConfigError, match=r"--minutes is 0\.5; the comparison of 2 networks takes at least"
    ) as caught:
        seconds(0.5)
    least = float(re.findall(r"at least ([\d.]+)", str(caught.value))[0])
    assert seconds(least) >= 6 * 0.1 * 8 and least == pytest.approx((other + 4.8 * 5.5) / 60, abs=0.21)


def test_rejected_time_leaves_no_folder_behind(
    short: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: Fails
) -> None:
    (tmp_path / "text.txt").write_text(text_of(20_000))
    command = ["ladder", tmp_path / "text.txt", "--out", tmp_path / "l", "--baseline", "unigram", "--quiet"]

    def refused(*_: object) -> float:
        raise ConfigError("--minutes is too little")

    monkeypatch.setattr(ladder, "_measured_seconds", refused)
    assert "too little" in fails(*command, "--minutes", "1")
    monkeypatch.setattr(ladder, "_measured_seconds", lambda *_: 0.5)
    assert main([*map(str, command), "--minutes", "2"]) == 0


def test_invalid_comparisons_are_rejected(tmp_path: Path, fails: Fails) -> None:
    (tmp_path / "text.txt").write_text(text_of(10_000))
    text = tmp_path / "text.txt"
    assert "expected a finite time above 0" in fails(
        "ladder", text, "--minutes", "0", "--out", tmp_path / "l"
    )
    message = fails("ladder", text, "--minutes", "1", "--baseline", "GPT-3", "--out", tmp_path / "l")
    assert "unknown baseline 'GPT-3'" in message
    message = fails("ladder", text, "--minutes", "1", "--model.d-model", "64", "--out", tmp_path / "l")
    assert "the ladder decides model.d_model itself; remove this setting" in message
    assert not (tmp_path / "l").exists()
