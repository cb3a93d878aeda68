"""Training on windows shorter than the model's context."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.helpers import WORDS, text_of, tiny_config
from wholegpt.console import Console
from wholegpt.errors import ConfigError
from wholegpt.runs import api
from wholegpt.runs.folder import recorded_config
from wholegpt.runs.train import open_stage
from wholegpt.settings.presets import configure
from wholegpt.stages.instruction import InstructionTuning

QUIET = Console(quiet=True)
SHORT = {"windows": {"length": 8}}
CONVERSATIONS = [
    {"instruction": f"Say {word}", "output": " ".join([word] * (1 + number % 5))}
    for number, word in enumerate(WORDS)
]


def test_short_windows_equal_a_model_with_that_context(text_file: Path, tmp_path: Path) -> None:
    """Rotary positions have no parameters, so the two models differ only in their context length."""
    configs = {
        "windows": tiny_config(text_file, **SHORT),
        "context": tiny_config(text_file, model={"context_length": 8}),
    }
    ends = {}
    for name, config in configs.items():
        run = api.train(config=config, out=tmp_path / name, console=QUIET)
        ends[name] = load_file(run.path / "checkpoints/step-00000012/model.safetensors")
    assert ends["windows"].keys() == ends["context"].keys()
    assert all(tensor.equal(ends["context"][name]) for name, tensor in ends["windows"].items())
    assert recorded_config(tmp_path / "windows").model.context_length == 16


def test_continued_pretraining_keeps_the_context(text_file: Path, tmp_path: Path) -> None:
    parent = api.train(config=tiny_config(text_file), out=tmp_path / "parent", console=QUIET)
    config = configure({"training": {"steps": 2, "batch_size": 3}, "logging": {"every": 1}, **SHORT})
    run = api.finetune(
        parent.path, text_file, task="pretraining", config=config, out=tmp_path / "run", console=QUIET
    )
    assert run.load().model.context_length == 16
    (first, *_) = (line for line in run.metrics if line["kind"] == "train")
    assert first["tokens"] == 3 * 8


def test_window_length_of_conversations(tmp_path: Path) -> None:
    """Rows have the requested length, longer conversations are truncated, and the model keeps its context."""
    (tmp_path / "text.txt").write_text(text_of(3000) + json.dumps(CONVERSATIONS))
    (tmp_path / "data.json").write_text(json.dumps(CONVERSATIONS))
    config = tiny_config(tmp_path / "text.txt", model={"context_length": 128})
    parent = api.train(config=config, out=tmp_path / "parent", console=QUIET)
    widths: dict[int, int] = {}
    for length in (0, 24):
        config = configure({"windows": {"length": length}, "training": {"steps": 1, "epochs": 0}})
        run = api.finetune(
            parent.path,
            tmp_path / "data.json",
            task="instruct",
            config=config,
            out=tmp_path / f"run-{length}",
            console=QUIET,
        )
        assert run.load().model.context_length == 128
        stage = open_stage(run.path)
        assert isinstance(stage, InstructionTuning)
        widths[length] = stage.batches.batch(0).token_ids.shape[1]
        assert ("are cut at 24 tokens" in stage.describe()) == bool(length)
        assert not any(one.cut for one in stage.validation)
    assert widths[24] == 24 < widths[0] <= 128


def test_windows_longer_than_the_context_are_rejected(text_file: Path, tmp_path: Path) -> None:
    expected = "windows.length is 17; expected a value of 0, or from 2 to model.context_length, 16"
    with pytest.raises(ConfigError, match=expected):
        api.train(config=tiny_config(text_file, windows={"length": 17}), out=tmp_path / "run", console=QUIET)
    parent = api.train(config=tiny_config(text_file), out=tmp_path / "parent", console=QUIET)
    with pytest.raises(ConfigError, match=expected):
        api.finetune(
            parent.path,
            text_file,
            task="pretraining",
            config=configure({"windows": {"length": 17}}),
            out=tmp_path / "run",
            console=QUIET,
        )
    with pytest.raises(ConfigError, match=r"windows\.length does not apply to classification"):
        api.finetune(
            parent.path,
            text_file,
            task="classification",
            config=configure({"windows": {"length": 8}}),
            out=tmp_path / "run",
            console=QUIET,
        )
    assert not (tmp_path / "run").exists()
