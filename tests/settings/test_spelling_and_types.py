"""Spelling of settings in Python, YAML and on the command line, and arguments of the wrong type."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest

import wholegpt as wg
from tests.helpers import Fails
from wholegpt.checkpoint import CheckpointStore
from wholegpt.cli import main
from wholegpt.errors import ConfigError
from wholegpt.settings.choices import FeedForward, Norm

WRITTEN = ["layer-norm", "layer_norm"]


@pytest.mark.parametrize("norm", WRITTEN)
@pytest.mark.parametrize("name", ["norm-placement", "norm_placement"])
def test_hyphens_and_underscores_are_equivalent(
    norm: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mapping = {"model": {"norm": norm, name: "post", "feed-forward": "gelu-tanh"}}
    config = wg.configure(mapping)
    assert config.model.norm is Norm.layer_norm and config.model.feed_forward is FeedForward.gelu_tanh
    (tmp_path / "mine.yaml").write_text(json.dumps(mapping))
    assert wg.recipe(str(tmp_path / "mine.yaml")) == config
    options = ["--model.norm", norm, f"--model.{name}", "post", "--model.feed_forward", "gelu-tanh"]
    assert main(["train", "x", *options, "--device", "cpu", "--print-config", "--json"]) == 0
    model = json.loads(capsys.readouterr().out)["model"]
    assert (model["norm"], model["norm_placement"], model["feed_forward"]) == (
        "layer_norm",
        "post",
        "gelu_tanh",
    )


def test_preset_with_changes_in_either_spelling() -> None:
    for name in ("n-layers", "n_layers"):
        config = wg.configure({"model": {"preset": "gpt2-small", name: 2}})
        assert (config.model.n_layers, config.model.d_model, config.model.vocab_size) == (2, 768, 0)


@pytest.mark.parametrize("norm", ["layernorm", "LAYER_NORM", "layerNorm", "layer norm", "layer_norm-"])
def test_other_spellings_are_rejected_everywhere(norm: str, fails: Fails) -> None:
    with pytest.raises(ConfigError, match=r"model\.norm: there is no value .*; (did you mean|there are)"):
        wg.configure({"model": {"norm": norm}})
    assert "for --model.norm" in fails("train", "x", "--model.norm", norm, "--print-config")


def test_setting_in_both_spellings_is_rejected() -> None:
    with pytest.raises(ConfigError, match=r"'model\.n_layers' is given twice"):
        wg.configure({"model": {"n-layers": 1, "n_layers": 2}})


def test_list_of_prompts(trained_run: Path) -> None:
    lm = wg.load(trained_run)
    settings: dict[str, Any] = {"max_tokens": 8, "temperature": 0}
    both = lm.generate(["the", "of a"], **settings)
    assert [one.text for one in both] == [lm.generate(one, **settings).text for one in ("the", "of a")]
    assert lm.generate([]) == []
    with pytest.raises(ConfigError, match="emit gets the text of one prompt"):
        cast(Any, lm).generate(["the"], emit=print)


WRONG = """
import sys, wholegpt as wg
from wholegpt.console import Console
lm, quiet = wg.load(sys.argv[1]), Console(quiet=True)
for value in (5, None, b"a", ["a", 5], {"a": 1}):
    for call in (
        lm.generate, lm.score, lm.evaluate, lm.beam_search, lm.chat, lm.evaluate_task, wg.configure,
        lambda value: lm.generate_all(value), lambda value: wg.compare(lm, lm, value),
        lambda value: wg.train(value, console=quiet), lambda value: lm.generate("the", max_tokens=value),
    ):
        if (call, value) == (wg.configure, {"a": 1}) or (value == 5 and call.__code__.co_consts[-1] == ("max_tokens",)):
            continue
        try:
            call(value)
        except wg.WholeGPTError as error:
            print(type(error).__name__, error)
        else:
            raise SystemExit(f"{call} takes {value!r}")
for call in (
    lambda: wg.load(""), lambda: wg.load(sys.argv[1], checkpoint=None), lambda: wg.load(sys.argv[1], checkpoint=True),
    lambda: wg.train("a.txt", config={"training": {}}),
    lambda: wg.finetune(sys.argv[1], "a.csv", task="pretraining", config=[1]),
):
    try:
        call()
    except wg.WholeGPTError as error:
        print(type(error).__name__, error)
    else:
        raise SystemExit("not refused")
last = wg.load(sys.argv[1], checkpoint="last")
step = int(sys.argv[2])
assert wg.load(sys.argv[1], checkpoint=step).generate("a", max_tokens=5, console=quiet).text == last.generate(
    "a", max_tokens=5, console=quiet
).text
"""


def test_arguments_of_the_wrong_type(trained_run: Path) -> None:
    """In a subprocess, without the run-time type checks of the tests."""
    step = max(CheckpointStore(trained_run).steps())
    program = [sys.executable, "-c", WRONG, str(trained_run), str(step)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "expected a text" in done.stdout and "argument of its own" in done.stdout
    assert "config is of type dict" in done.stdout and "checkpoint is None" in done.stdout


@pytest.mark.parametrize("number", ["010", "1:30", "0x10", "0o17", "1:30.5", "2024-01-01"])
def test_numbers_in_yaml_are_decimal(number: str, tmp_path: Path) -> None:
    """YAML 1.1 reads 010 as 8, 1:30 as 90 and 2024-01-01 as a date."""
    (tmp_path / "recipe.yaml").write_text(f"training: {{steps: {number}, gradient_clip: {number}}}")
    with pytest.raises(ConfigError, match=r"training\.steps: expected a whole number, found text"):
        wg.recipe(str(tmp_path / "recipe.yaml"))
    (tmp_path / "recipe.yaml").write_text(f"data: {{source: [{number}]}}")
    assert wg.recipe(str(tmp_path / "recipe.yaml")).data.source == (number,)
