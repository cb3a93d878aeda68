"""Prompts for reinforcement learning: reading, splitting and encoding."""

import json
from pathlib import Path
from typing import Any

import pytest

from wholegpt.console import Console
from wholegpt.data.chat.template import ChatTemplate, Message
from wholegpt.data.examples.prompts import Prompt, PromptData, encode_prompts, read_prompts
from wholegpt.data.reading.tables import Reading
from wholegpt.errors import ConfigError, DataError
from wholegpt.settings.presets import configure
from wholegpt.settings.schema import Config
from wholegpt.tokenizers import byte_tokenizer

USER, ANSWER = {"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2"}
ASKED = (Message("user", "1+1"),)
WITHOUT, WITH = Prompt(ASKED), Prompt(ASKED, "2")
FORMS: dict[str, tuple[dict[str, Any], Prompt]] = {
    "a text": ({"prompt": "1+1"}, WITHOUT),
    "other column names": ({"Question": "1+1", "Answer": "2"}, WITH),
    "a solution": ({"prompt": "1+1", "solution": "2", "level": 3}, WITH),
    "ground truth": ({"prompt": "1+1", "ground_truth": "2"}, WITH),
    "a label": ({"text": "1+1", "label": 2}, WITH),
    "a number": ({"prompt": "1+1", "answer": 2.0}, WITH),
    "the answer before the completion": ({"prompt": "1+1", "completion": "It is 2.", "answer": "2"}, WITH),
    "no answer in this row": ({"prompt": "1+1", "answer": None}, WITHOUT),
    "TRL, conversational": ({"prompt": [USER]}, WITHOUT),
    "TRL, conversational, with an answer": ({"prompt": [USER, ANSWER]}, WITH),
    "messages": ({"messages": [USER]}, WITHOUT),
    "messages with the answer": ({"messages": [USER, ANSWER]}, WITH),
    "messages as JSON": ({"messages": json.dumps([USER]), "answer": "2"}, WITH),
    "an object with messages": ({"input": {"messages": [USER]}, "answer": "2"}, WITH),
    "an instruction and its input": (
        {"instruction": "Add.", "input": "1, 1", "output": "2"},
        Prompt((Message("user", "Add.\n\n1, 1"),), "2"),
    ),
    "a system message": (
        {"system": "Be brief.", "prompt": "1+1", "answer": "2"},
        Prompt((Message("system", "Be brief."), *ASKED), "2"),
    ),
    "several turns": (
        {"messages": [USER, ANSWER, {**USER, "content": "And 2+2?"}], "answer": "4"},
        Prompt((*ASKED, Message("assistant", "2"), Message("user", "And 2+2?")), "4"),
    ),
    "a text that is JSON": ({"prompt": "[1, 2]"}, Prompt((Message("user", "[1, 2]"),))),
}


def write(path: Path, rows: Any) -> Path:
    path.write_text(json.dumps(rows))
    return path


def read(path: Path, *rows: Any, on_bad_line: Any = "stop") -> list[Prompt]:
    reading = Reading(on_bad_line=on_bad_line)
    return read_prompts(reading.table(write(path, rows)), reading)[0]


@pytest.mark.parametrize("form", FORMS)
def test_formats_of_prompts(form: str, tmp_path: Path) -> None:
    row, expected = FORMS[form]
    assert read(tmp_path / "prompts.json", row) == [expected]


BAD_ROWS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "has no prompt": ({"prompt": "1+1"}, {"prompt": " "}),
    "the prompt: expected a text or a list of messages, found 3": ({"prompt": "1+1"}, {"prompt": 3}),
    "answer: expected a text, found .*rename or remove": (
        {"prompt": "1+1", "answer": "2"},
        {"prompt": "1+2", "answer": ["3"]},
    ),
    "'answer' differs from the last message": (
        {"messages": [USER], "answer": "2"},
        {"messages": [USER, ANSWER], "answer": "3"},
    ),
    "user and assistant must alternate": ({"messages": [USER]}, {"messages": [USER, USER]}),
    "starting with the user": ({"messages": [USER]}, {"messages": [ANSWER]}),
    "expected a list of messages": ({"messages": [USER]}, {"messages": "1+1"}),
    "expected a text in 'system'": ({"prompt": "1+1", "system": ""}, {"prompt": "1+1", "system": 4}),
}


@pytest.mark.parametrize("message", BAD_ROWS)
def test_rows_without_a_prompt(message: str, tmp_path: Path) -> None:
    good, bad = BAD_ROWS[message]
    with pytest.raises(DataError, match=f"entry 2.*{message}"):
        read(tmp_path / "prompts.json", good, bad)
    assert len(read(tmp_path / "more.json", good, bad, on_bad_line="skip")) == 1
    with pytest.raises(DataError, match=f"none of 1 rows is a prompt; .*{message}"):
        read(tmp_path / "bad.json", {**dict.fromkeys(good), **bad}, on_bad_line="skip")


def test_table_without_prompts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no column of prompts.*the columns are chosen, rejected"):
        read(tmp_path / "pairs.json", {"chosen": "a", "rejected": "b"})


# --- The split ---------------------------------------------------------------------------------------


def settings(data: Path | str, validation: Path | str = "", **sections: Any) -> Config:
    finetuning = {"task": "grpo", "data": str(data), "validation": str(validation)}
    return configure({"finetuning": finetuning, **sections})


def test_all_rows_of_a_prompt_are_on_one_side_of_the_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": f"{number % 20}+1", "answer": number % 20 + 1, "line": number} for number in range(60)]
    data = PromptData.read(settings(write(tmp_path / "sums.json", rows)), Console())
    trained, held_out = ({one.messages for one in side} for side in (data.train, data.validation))
    assert len(held_out) == 2 and len(trained) == 18 and not trained & held_out
    assert len(data.train) == 54 and len(data.validation) == 6
    notes = capsys.readouterr().err
    assert "36 of 54 training prompts repeat an earlier one" in notes
    assert "columns prompt, answer; not used: line" in notes
    hash_of_all = data.save(tmp_path / "saved")
    assert PromptData.open(tmp_path / "saved") == data and len(hash_of_all) == 64


def test_validation_file_must_not_share_prompts(tmp_path: Path) -> None:
    train = write(tmp_path / "train.json", [{"prompt": "1+1"}, {"prompt": "1+2"}])
    other = write(tmp_path / "other.json", [{"question": "1+3"}])
    data = PromptData.read(settings(train, other))
    assert [one.messages[0].content for one in (*data.train, *data.validation)] == ["1+1", "1+2", "1+3"]
    common = write(tmp_path / "common.json", [{"prompt": "1+3"}, {"prompt": "1+2"}])
    with pytest.raises(DataError, match=r"common\.json: 1 of its prompts are in .*train\.json, too"):
        PromptData.read(settings(train, common))


def test_data_that_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no training examples are named; give --data FILE"):
        PromptData.read(settings(""))
    few = write(tmp_path / "few.json", [{"prompt": "1+1"}] * 3)
    with pytest.raises(
        DataError, match="3 prompts of 1 different questions, too few to hold 10% of them out"
    ):
        PromptData.read(settings(few))
    missing = tmp_path / "missing.json"
    with pytest.raises(DataError, match=r"missing\.json"):
        PromptData.read(settings(missing))


def test_prompts_of_a_built_in_task() -> None:
    data = PromptData.read(settings("addition:30"))
    assert len(data.train) == 30 and len(data.validation) == 500
    assert all(
        sum(map(int, one.messages[0].content.split("+"))) == int(one.answer)
        for one in (*data.train, *data.validation)
    )


# --- Encoding ----------------------------------------------------------------------------------------


def test_encoded_prompts_end_before_the_answer_and_leave_room_for_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    template, known = ChatTemplate(), byte_tokenizer()
    tokenizer = known.with_special_tokens([n for n in template.special_tokens if known.id_of(n) is None])
    long = Prompt((Message("user", "1+" * 10),))
    (encoded,) = encode_prompts([WITH, long], template, tokenizer, 20, Console())
    names = [tokenizer.id_of(name) for name in ("<|user|>", "<|assistant|>")]
    assert encoded.prompt == WITH
    assert encoded.token_ids == [names[0], *tokenizer.encode("1+1"), names[1]]
    assert (
        "left out, because they fill the model's context of 20 tokens: 1 prompt\n" in capsys.readouterr().err
    )
    assert len(encode_prompts([WITH], template, tokenizer, 6)) == 1
    with pytest.raises(
        DataError, match="none of 2 prompts leaves room for a completion in the model's context of 5"
    ):
        encode_prompts([WITH, long], template, tokenizer, 5)
