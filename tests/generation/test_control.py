"""Control codes: a model trained on headers follows them, saves them with its checkpoint, and never outputs them."""

import json
import random
from pathlib import Path

import pytest

import wholegpt as wg
from tests.helpers import Fails, tiny_config
from wholegpt.cli import main
from wholegpt.console import Console
from wholegpt.errors import CheckpointError, ConfigError

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run trained on rows that repeat the letter named in a field."""
    folder = tmp_path_factory.mktemp("control")
    generator = random.Random(0)
    lines = [{"text": "ab"[i % 2] * generator.randint(3, 6), "letter": "ab"[i % 2]} for i in range(400)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = tiny_config(
        folder / "rows.jsonl",
        data={"control": ["letter"]},
        windows={"documents": "separate"},
        model={"context_length": 48, "d_model": 32},
        optimizer={"learning_rate": 0.02},
        training={"steps": 150, "batch_size": 16},
        schedule={"warmup_steps": 10, "final_fraction": 0.0},
        evaluation={"every": 0},
        checkpointing={"every": 0},
        logging={"every": 50, "sample_every": 0, "sample_prompt": ""},
    )
    return wg.train(config=config, out=folder / "run", console=QUIET).path


@pytest.mark.slow
def test_model_follows_control_codes(run: Path) -> None:
    lm = wg.load(run, console=QUIET)
    obeyed = 0
    for letter in "ab":
        for seed in range(50):
            completion = lm.generate(control={"letter": letter}, temperature=1, seed=seed, console=QUIET)
            obeyed += set(completion.text) == {letter} and completion.finish_reason == "end_of_text"
    assert obeyed >= 95


def test_header_is_not_part_of_the_output(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", str(run), "bb", "--control", "letter=b", "--temperature", "0", "--quiet"]
    assert main(command) == 0
    assert set(capsys.readouterr().out) == {"b", "\n"}
    template = ["--template", "b{prompt}", "--json"]
    assert main([*command, *template]) == 0
    (completion,) = json.loads(capsys.readouterr().out)["completions"]
    assert set(completion["text"]) == {"b"}


def test_template_ends_at_its_stop_strings(run: Path) -> None:
    lm = wg.load(run, console=QUIET)
    plain = lm.generate("aa", control={"letter": "a"}, temperature=0, console=QUIET)
    filled = lm.generate("a", template="a{prompt}", control={"letter": "a"}, temperature=0, console=QUIET)
    assert filled.text == plain.text
    assert lm.generate("aa", template="{prompt}", stop="a", control={"letter": "a"}, console=QUIET).text == ""


def test_control_codes_are_saved_with_the_checkpoint(run: Path, tmp_path: Path) -> None:
    (checkpoint,) = (run / "checkpoints").iterdir()
    lm = wg.load(checkpoint.rename(tmp_path / "alone"), console=QUIET)
    (tmp_path / "alone").rename(checkpoint)
    assert sorted(lm.control) == ["letter"] and sorted(lm.control["letter"]) == ["a", "b"]
    assert lm.control == wg.load(run, console=QUIET).control


def test_damaged_control_metadata_is_an_error(run: Path, tmp_path: Path) -> None:
    (checkpoint,) = (run / "checkpoints").iterdir()
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        (tmp_path / name).write_bytes((checkpoint / name).read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "control": ["letter"]}))
    with pytest.raises(CheckpointError, match=r"config\.json: .*control"):
        wg.load(tmp_path, console=QUIET)


def test_invalid_control_codes_are_rejected_on_the_command_line(
    run: Path, trained_run: Path, fails: Fails
) -> None:
    assert "had no value 'c' in training; there are: " in fails("generate", run, "--control", "letter=c")
    assert "expected FIELD=VALUE" in fails("generate", run, "--control", "letter")
    twice = ["--control", "letter=a", "--control", "letter=b"]
    assert "each field once" in fails("generate", run, *twice)
    assert "trained without" in fails("generate", trained_run, "--control", "letter=a")
    assert "did you mean 'story'" in fails("generate", run, "a", "--template", "stori")


def test_control_fields_must_match_the_prepared_data(run: Path, tmp_path: Path) -> None:
    config = tiny_config(run / "data", data={"control": ["other"]})
    with pytest.raises(ConfigError, match=r"data\.control is \['other'\].*prepared with \['letter'\]"):
        wg.train(config=config, out=tmp_path / "run", console=QUIET)


def test_evaluation_counts_the_header(run: Path) -> None:
    """The run's held-out text is evaluated with its headers, and its byte count is that of its tokens."""
    from wholegpt.runs.folder import run_data

    held_out = run_data(run).validation
    text = wg.load(run, console=QUIET).tokenizer.decode(held_out.read(0, len(held_out)).tolist())
    documents = text.split("<|endoftext|>")
    headed = [one for one in documents if ":" in one]
    assert len(headed) > 0.75 * len(documents)  # a tenth of all documents have no header
    assert all(one.startswith(f"letter: {one[-1]}\n") for one in headed)
    assert held_out.text is not None and held_out.text.bytes == sum(len(one.encode()) for one in documents)
