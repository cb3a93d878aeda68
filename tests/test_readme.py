"""The commands and the Python code of the README run."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import WORDS, make_plans_small, text_of
from wholegpt.cli import main

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.partition("#")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", README, re.S)
    for line in block.splitlines()
    if line.startswith("wholegpt ")
]
FEW_STEPS = ["--training.steps", "3", "--model.context-length", "32", "--quiet"]


@pytest.fixture
def in_a_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the test in a new folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.txt").write_text(text_of(20_000))
    (tmp_path / "other.txt").write_text(text_of(2_000, seed=1))
    (tmp_path / "questions.jsonl").write_text(
        '{"context": "The sun rises in the", "choices": ["east", "west"], "answer": 0}\n'
    )
    words = [f"{word},{'long' if len(word) > 2 else 'short'}" for word in WORDS] * 3
    (tmp_path / "labeled.csv").write_text("\n".join(["text,label", *words]))
    (tmp_path / "test.csv").write_text("\n".join(["text,label", *words[:9]]))
    (tmp_path / "instructions.csv").write_text("\n".join(["question,answer", *words]))


def end_of_input() -> str:
    raise EOFError


@pytest.mark.slow
def test_commands_of_the_readme(
    in_a_new_folder: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In order; training runs are cut to three steps or a minute, and plans to tiny models."""
    make_plans_small(monkeypatch)
    monkeypatch.setattr("builtins.input", end_of_input)
    monkeypatch.setattr("wholegpt.experiments.ladder._measured_seconds", lambda *_: 0.3)
    assert len(COMMANDS) >= 9
    for command in COMMANDS:
        arguments = shlex.split(command)[1:]
        if arguments[0] == "ladder":
            arguments += ["--baseline", "n-gram", "--baseline", "GPT-2", "--quiet"]
        elif arguments[0] == "train" and "--minutes" in arguments:
            arguments[arguments.index("--minutes") + 1] = "1"
            arguments += ["--logging.sample-tokens", "4"]
        elif arguments[0] == "train":
            arguments += FEW_STEPS
        elif arguments[0] == "finetune":
            arguments += ["--training.epochs", "0", "--training.steps", "2", "--quiet"]
        assert main(arguments) == 0, command
    assert Path("runs/mine/report.html").exists()
    assert "124,439,808" in capsys.readouterr().out


@pytest.mark.slow
def test_python_code_of_the_readme(in_a_new_folder: None) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README, re.S)
    names: dict[str, Any] = {}
    exec(compile(block, "README.md", "exec"), names)
    logits = names["logits"]
    assert logits.shape[:2] == (1, 3)


def test_links_of_the_readme_exist() -> None:
    root = Path(__file__).parents[1]
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert targets and all((root / target).exists() for target in targets)
