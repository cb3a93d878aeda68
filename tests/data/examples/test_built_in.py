"""Built-in tasks: correct answers, and no overlap between training and held-out exercises."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import Fails
from wholegpt.cli import main
from wholegpt.data.examples import built_in
from wholegpt.data.examples.built_in import MOST_HELD_OUT, TASKS, Exercise
from wholegpt.data.examples.conversations import ConversationData
from wholegpt.data.examples.data import TaskData
from wholegpt.data.examples.preferences import PreferenceData
from wholegpt.data.examples.prompts import PromptData
from wholegpt.errors import ConfigError, DataError
from wholegpt.runs.folder import check_free, with_absolute_paths
from wholegpt.settings.presets import configure
from wholegpt.settings.schema import Config


def correct_answer(name: str, prompt: str) -> str:
    """Compute the correct answer independently."""
    if name == "addition":
        left, right = prompt.split("+")
        assert len(left) == len(right) == 2
        return str(int(left) + int(right))
    verb, given = prompt.split(" ")
    if name == "copying":
        assert verb == "copy" and len(given) == 5 and given.isalpha() and given.islower()
        return given
    assert verb == "sort" and len(given) == 5
    return "".join(digit * given.count(digit) for digit in "0123456789")


@given(name=st.sampled_from(sorted(TASKS)), count=st.integers(1, 300), seed=st.integers(0, 2**31))
def test_answers_are_correct_and_training_excludes_held_out_exercises(
    name: str, count: int, seed: int
) -> None:
    task = TASKS[name]
    train, held_out = task.train(count, seed), HELD_OUT[name]
    assert len({one.prompt for one in train}) == len(train) == count
    assert all(one.answer == correct_answer(name, one.prompt) for one in train)
    assert not {one.parts for one in train} & {one.parts for one in held_out}
    assert train == task.train(count + 50, seed)[:count], "a smaller sample is a prefix of a larger one"


HELD_OUT: dict[str, list[Exercise]] = {name: task.validation() for name, task in TASKS.items()}


@pytest.mark.parametrize("name", sorted(TASKS))
def test_held_out_exercises(name: str) -> None:
    held_out = HELD_OUT[name]
    assert len({one.prompt for one in held_out}) == len(held_out) == MOST_HELD_OUT
    assert all(one.answer == correct_answer(name, one.prompt) for one in held_out)
    assert held_out == TASKS[name].validation()


@pytest.mark.parametrize("name", ["addition", "sorting"])
def test_every_exercise_is_on_one_side_of_the_split(name: str) -> None:
    """About a tenth of all exercises is held out, regardless of the order of their parts."""
    task = TASKS[name]
    everything = [task.exercise(index) for index in range(task.size)]
    trained = task.train(task.size, 3)
    held_out = {one.prompt for one in everything} - {one.prompt for one in trained}
    assert len({one.prompt for one in everything}) == task.size
    assert 0.08 < len(held_out) / task.size < 0.12
    assert {one.prompt for one in HELD_OUT[name]} <= held_out
    assert not {one.parts for one in trained} & {one.parts for one in everything if one.prompt in held_out}


def test_permuted_exercises_are_on_the_same_side() -> None:
    trained = {one.prompt for one in TASKS["addition"].train(8_100, 0)}
    assert all("+".join(reversed(prompt.split("+"))) in trained for prompt in trained)


def settings(source: str, seed: int = 1337, **sections: Any) -> Config:
    finetuning = {"task": "instruct", "data": source, **sections.pop("finetuning", {})}
    return configure({"finetuning": finetuning, "runtime": {"seed": seed}, **sections})


@pytest.mark.parametrize("name", sorted(TASKS))
def test_fine_tuning_and_reinforcement_learning_hold_out_the_same_exercises(name: str) -> None:
    """Also with different seeds and numbers of examples."""
    tuned = ConversationData.read(settings(f"{name}:100", seed=1))
    aligned = PromptData.read(settings(name, seed=2))
    assert len(tuned.train) == 100 and len(aligned.train) == 5_000
    held_out = [one[:-1] for one in tuned.validation]
    assert held_out == [one.messages for one in aligned.validation]
    trained = {one[:-1] for one in tuned.train} | {one.messages for one in aligned.train}
    assert not trained & {*held_out}
    assert tuned.validation[0][-1].content == aligned.validation[0].answer


def test_examples_depend_on_the_seed() -> None:
    first, second = (ConversationData.read(settings("addition:100", seed=seed)).train for seed in (1, 2))
    assert first != second and first == ConversationData.read(settings("addition:100", seed=1)).train


BAD_SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "addition:: expected a number of examples after the colon, as in addition:500": ("addition:", {}),
    "addition:0: expected a number": ("addition:0", {}),
    "addition:many: expected a number": ("addition:many", {}),
    "addition:-5: expected a number": ("addition:-5", {}),
    "addition:90000: addition has only 8,100 examples, a tenth of them held out": ("addition:90000", {}),
    "addition:8000: addition has only 7,2.. examples": ("addition:8000", {}),
    r"finetuning\.validation does not apply to addition": (
        "addition",
        {"finetuning": {"validation": "x.csv"}},
    ),
    r"finetuning\.text_columns does not apply": ("addition", {"finetuning": {"text_columns": ["a"]}}),
    r"data\.validation_fraction does not apply.*fixed": ("addition", {"data": {"validation_fraction": 0.2}}),
    "--encoding has no effect here: addition": ("addition", {"data": {"encoding": "latin-1"}}),
}


@pytest.mark.parametrize("message", BAD_SETTINGS)
def test_invalid_settings_are_rejected(message: str) -> None:
    source, sections = BAD_SETTINGS[message]
    for kind in (ConversationData, PromptData):
        with pytest.raises(ConfigError, match=message):
            kind.read(settings(source, **sections))


@pytest.mark.parametrize("given", ["aditon", "aditon:500"])
def test_misspelled_task_name(given: str) -> None:
    with pytest.raises(DataError, match=f"{given}: no table or built-in task; did you mean 'addition'"):
        PromptData.read(settings(given))


def test_task_given_for_preference_pairs_or_labels_is_rejected() -> None:
    with pytest.raises(DataError, match=r"addition: a built-in task .*expected a table of pairs of a chosen"):
        PreferenceData.read(settings("addition"))
    with pytest.raises(DataError, match=r"addition: a built-in task .*expected a table of examples of class"):
        TaskData.read(settings("addition", finetuning={"task": "classification"}))


def test_task_name_takes_precedence_over_a_folder_without_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "addition").mkdir()
    config = settings("addition")
    assert len(PromptData.read(config).train) == 5_000
    assert with_absolute_paths(config).finetuning.data == "addition"
    check_free(tmp_path / "addition", config, overwrite=False)
    path = settings("./addition")
    assert with_absolute_paths(path).finetuning.data == str(tmp_path / "addition")
    with pytest.raises(DataError, match="is not a table"):
        PromptData.read(path)


def test_tasks_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "list", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["tasks"]) == ["addition", "copying", "sorting"]
    assert main(["data", "list"]) == 0
    shown = capsys.readouterr().out
    assert "sums of two numbers of two digits: 12+34 → 46" in shown and "tinyshakespeare" in shown


def test_fine_tuning_on_a_few_examples_of_a_task(
    tmp_path: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(built_in, "MOST_HELD_OUT", 4)
    (tmp_path / "sums.txt").write_text("".join(f"{a}+{b}={a + b}\n" for a in range(10, 60) for b in (11, 23)))
    base, tuned = tmp_path / "base", tmp_path / "tuned"
    tiny = ["--model.n-layers", "1", "--model.d-model", "16", "--model.n-heads", "2", "--tokenizer.kind", "byte",
            "--model.context-length", "24", "--training.steps", "2", "--device", "cpu", "--quiet"]  # fmt: skip
    assert main(["train", str(tmp_path / "sums.txt"), "--out", str(base), *tiny]) == 0
    options = ["--training.steps", "2", "--device", "cpu", "--quiet", "--out", str(tuned)]
    assert main(["finetune", str(base), "--task", "instruct", "--data", "addition:20", *options]) == 0
    assert "data: addition:20\n" in (tuned / "config.yaml").read_text()
    data = ConversationData.open(tuned / "data")
    assert len(data.train) == 20 and len(data.validation) == 4
    assert "expected a number of examples" in fails(
        "finetune", base, "--task", "instruct", "--data", "addition:x", "--out", tmp_path / "other"
    )
