"""Conversation formats of other programs: which are accepted, skipped on request, or rejected."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import tiny_config
from wholegpt.console import Console
from wholegpt.data.chat.template import ChatTemplate, Conversation, Message
from wholegpt.data.examples.conversations import ConversationData, read_conversations
from wholegpt.data.reading.tables import Reading, Table, read_table
from wholegpt.errors import DataError
from wholegpt.stages import answers as instructions
from wholegpt.stages.answers import fit_conversations, fitting_turns
from wholegpt.tokenizers import byte_tokenizer

ADD = (Message("user", "Add 1 1"), Message("assistant", "2"))
TOLD = (Message("system", "Be brief"), *ADD)
USER, ANSWER = {"role": "user", "content": "Add 1 1"}, {"role": "assistant", "content": "2"}


def table_of(path: Path, *records: Any) -> Table:
    path.write_text("\n".join(map(json.dumps, records)))
    return read_table(path)


def conversation(*messages: dict[str, Any], **columns: Any) -> dict[str, Any]:
    return {"messages": list(messages), **columns}


ACCEPTED: dict[str, tuple[dict[str, Any], Conversation]] = {
    "system column with messages": (conversation(USER, ANSWER, system="Be brief"), TOLD),
    "system column with a ShareGPT conversation": (
        {
            "system": "Be brief",
            "conversations": [{"from": "human", "value": "Add 1 1"}, {"from": "gpt", "value": "2"}],
        },
        TOLD,
    ),
    "duplicate system message": (
        conversation({"role": "system", "content": "Be brief"}, USER, ANSWER, system="Be brief"),
        TOLD,
    ),
    "system column with Alpaca columns": (
        {"system": "Be brief", "instruction": "Add 1 1", "input": "", "output": "2"},
        TOLD,
    ),
    "system prompt of a question": (
        {"System_Prompt": "Be brief", "question": "Add 1 1", "response": "2"},
        TOLD,
    ),
    "empty system column": ({"system": "", "instruction": "Add 1 1", "output": "2"}, ADD),
    "null system column": (conversation(USER, ANSWER, system=None), ADD),
    "empty system message": (conversation({"role": "system", "content": ""}, USER, ANSWER), ADD),
    "history of an instruction": (
        {"instruction": "Add 1 1", "output": "2", "history": [["Hi", "Hello"], ["You?", "A model"]]},
        (
            *(Message("user", "Hi"), Message("assistant", "Hello")),
            *(Message("user", "You?"), Message("assistant", "A model")),
            *ADD,
        ),
    ),
    "history and system": (
        {"prompt": "Add 1 1", "response": "2", "history": [["Hi", "Hello"]], "system": "Be brief"},
        (TOLD[0], Message("user", "Hi"), Message("assistant", "Hello"), *ADD),
    ),
    "empty history": ({"prompt": "Add 1 1", "response": "2", "history": []}, ADD),
    "developer": (conversation({"role": "developer", "content": "Be brief"}, USER, ANSWER), TOLD),
    "upper case": (
        conversation({"role": "USER", "content": "Add 1 1"}, {"role": "Assistant", "content": "2"}),
        ADD,
    ),
    "chatgpt": (conversation({"from": "Human", "value": "Add 1 1"}, {"from": "chatgpt", "value": "2"}), ADD),
    "model": (conversation(USER, {"role": "model", "content": "2"}), ADD),
    "parts": (
        conversation(
            {"role": "user", "content": [{"type": "text", "text": "Add "}, {"type": "text", "text": "1 1"}]},
            ANSWER,
        ),
        ADD,
    ),
    "parts of the other kinds of text": (
        conversation(
            {"role": "user", "content": [{"type": "input_text", "text": "Add 1 1"}]},
            {"role": "assistant", "content": [{"type": "output_text", "text": "2"}]},
        ),
        ADD,
    ),
    "messages as JSON text": ({"messages": json.dumps([USER, ANSWER])}, ADD),
    "a user message with train false and weight 0": (
        conversation({**USER, "train": False, "weight": 0}, ANSWER),
        ADD,
    ),
    "null system message": (conversation({"role": "system", "content": None}, USER, ANSWER), ADD),
    "null tool calls": (conversation(USER, {**ANSWER, "tool_calls": None, "weight": 1}), ADD),
    "no tools": (conversation(USER, ANSWER, tools=[]), ADD),
    "ends with a user message": (conversation(USER, ANSWER, USER), (*ADD, ADD[0])),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_unambiguous_conversations_are_accepted(name: str, tmp_path: Path) -> None:
    record, expected = ACCEPTED[name]
    assert read_conversations(table_of(tmp_path / "data.jsonl", record))[0] == [expected]


REJECTED: dict[str, tuple[dict[str, Any], str]] = {
    "assistant first": (
        conversation(ANSWER, USER, ANSWER),
        "line 2: user and assistant .*; message 1 is of the assistant",
    ),
    "two user turns": (
        conversation(USER, USER, ANSWER),
        "line 2: user and assistant .*; message 2 is of the user",
    ),
    "two answers": (
        conversation(USER, ANSWER, ANSWER),
        "line 2: user and assistant .*; message 3 is of the assistant",
    ),
    "system in the middle": (
        conversation(USER, ANSWER, {"role": "system", "content": "Now rhyme"}, USER, ANSWER),
        "line 2: user and assistant .*; message 3 is of the system",
    ),
    "two system messages": (
        conversation({"role": "system", "content": "a"}, {"role": "developer", "content": "b"}, USER, ANSWER),
        "line 2: user and assistant .*; message 2 is of the system",
    ),
    "conflicting system messages": (
        conversation({"role": "system", "content": "Rhyme"}, USER, ANSWER, system="Be brief"),
        "line 2: the system message in 'system' differs from the one in the messages",
    ),
    "system of the wrong type": (
        conversation(USER, ANSWER, system=["a"]),
        "line 2: expected a text in 'system'",
    ),
    "empty content": (
        conversation(USER, {"role": "assistant", "content": " "}),
        "line 2: message 2: a message needs a content",
    ),
    "no content": (
        conversation(USER, {"role": "assistant", "content": None}),
        "line 2: message 2: a message needs a content",
    ),
    "no parts": (
        conversation(USER, {"role": "assistant", "content": []}),
        "line 2: message 2: a message needs a content",
    ),
    "an image": (
        conversation({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, ANSWER),
        "line 2: message 1: a part of its content is not text: type 'image_url'",
    ),
    "images column": (
        conversation(USER, ANSWER, images=["a.png"]),
        "line 2: has 'images', and images, sound and video",
    ),
    "tool calls": (
        conversation(USER, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}),
        "line 2: message 2: has 'tool_calls', and tool calls are not supported",
    ),
    "call of a function": (
        conversation(USER, {**ANSWER, "function_call": {"name": "f"}}),
        "line 2: message 2: has 'function_call'",
    ),
    "answer of a tool": (
        conversation(USER, {"role": "tool", "content": "2"}, ANSWER),
        "line 2: message 2: the role 'tool' belongs to tool calls, which are not supported",
    ),
    "tools column": (conversation(USER, ANSWER, tools=[{"name": "f"}]), "line 2: has 'tools'"),
    "an answer with weight 0": (
        conversation(USER, {**ANSWER, "weight": 0}),
        "line 2: message 2: weight is 0, but weights of answers are not supported",
    ),
    "an answer with weight 0.5": (
        conversation(USER, {**ANSWER, "weight": 0.5}),
        "line 2: message 2: weight is 0.5, but weights of answers are not supported",
    ),
    "an answer without a loss": (
        conversation(USER, {**ANSWER, "loss": False}),
        "line 2: message 2: loss is False, but weights of answers are not supported",
    ),
    "unknown role": (
        conversation(USER, {"role": "narrator", "content": "2"}),
        "line 2: message 2: the role 'narrator' is unknown",
    ),
}


@pytest.mark.parametrize("name", REJECTED)
def test_ambiguous_conversations_are_rejected_with_their_line_or_skipped(name: str, tmp_path: Path) -> None:
    record, message = REJECTED[name]
    good = conversation(USER, ANSWER)
    table = table_of(tmp_path / "data.jsonl", good, record, good)
    with pytest.raises(DataError, match=message):
        read_conversations(table)
    skipping = Reading(on_bad_line="skip")
    assert read_conversations(table, reading=skipping)[0] == [ADD, ADD]
    assert skipping.report.skipped == {"rows without an example": 1}


def test_history_of_an_instruction_must_be_pairs(tmp_path: Path) -> None:
    record = {"instruction": "Add", "output": "2", "history": [["Hi"]]}
    with pytest.raises(DataError, match="line 1: history: expected a list of pairs"):
        read_conversations(table_of(tmp_path / "data.jsonl", record))


def test_skipping_bad_conversations_is_a_setting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "data.jsonl"
    good = [conversation({"role": "user", "content": f"Say {i}"}, ANSWER) for i in range(20)]
    table_of(
        path,
        *good,
        conversation(ANSWER),
        {"messages": []},
        conversation(USER),
        conversation(USER, USER),
        *8 * [conversation(ANSWER)],
    )
    stops = tiny_config("none", finetuning={"task": "instruct", "model": "m", "data": str(path)})
    with pytest.raises(DataError, match="line 21"):
        ConversationData.read(stops)
    config = tiny_config(
        "none", data={"on_bad_line": "skip"}, finetuning={"task": "instruct", "model": "m", "data": str(path)}
    )
    data = ConversationData.read(config, Console())
    assert (len(data.train), len(data.validation)) == (18, 2)
    said_of_it = capsys.readouterr().err
    assert "skipped 12 rows without an example" in said_of_it
    assert all(f"line {line}" in said_of_it for line in range(21, 31)) and "line 31" not in said_of_it


def test_table_without_a_valid_conversation(tmp_path: Path) -> None:
    table = table_of(tmp_path / "data.jsonl", conversation(ANSWER), conversation(USER))
    with pytest.raises(DataError, match=r"none of 2 rows is a conversation; .*line 1"):
        read_conversations(table, reading=Reading(on_bad_line="skip"))


def test_note_about_train_flags_on_user_messages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = conversation({**USER, "train": True, "weight": 0}, {**ANSWER, "weight": 1})
    read_conversations(table_of(tmp_path / "data.jsonl", record), console=Console())
    assert "fields of messages that are not used: train\n" in capsys.readouterr().err


def test_unused_fields_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = conversation(
        {**USER, "name": "Ann", "note": ""}, {**ANSWER, "reasoning": "1 + 1"}, id=3, mood="calm"
    )
    read_conversations(table_of(tmp_path / "data.jsonl", record), console=Console())
    notes = capsys.readouterr().err
    assert "columns messages; not used: id, mood" in notes
    assert "fields of messages that are not used: name, reasoning" in notes


def test_fitting_turns_are_found_without_encoding_every_suffix(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    template, tokenizer = ChatTemplate(), byte_tokenizer().with_special_tokens(["<|user|>", "<|assistant|>"])
    talk = [Message(("user", "assistant")[i % 2], "x" * 20) for i in range(20_001)]
    read: list[int] = []
    encode = ChatTemplate.encode

    def counted(self: ChatTemplate, messages: Any, *arguments: Any, **named: Any) -> Any:
        read.append(len(messages))
        return encode(self, messages, *arguments, **named)

    monkeypatch.setattr(ChatTemplate, "encode", counted)
    kept = fitting_turns(talk, template, tokenizer, 200, 20)
    assert kept == talk[-len(kept) :] and kept[0].role == "user" and len(kept) > 5
    assert sum(read) < 100
    assert fitting_turns(talk[:4], template, tokenizer, 200, 20) == talk[:4]  # the whole conversation fits
    read.clear()
    long = (Message("user", "Hi"), *talk[1:2000])
    (fitted,) = fit_conversations([long], template, tokenizer, 200)
    assert fitted.cut and len(fitted.question) % 2 == 1
    assert len(encode(template, fitted.question, tokenizer, generation_prompt=True).token_ids) < 200
    assert sum(read) < len(long) + 100  # the whole conversation once, then the fitting turns


def test_binary_search_finds_the_largest_fitting_number() -> None:
    for most in range(12):
        for last in range(-1, most + 1):
            asked: list[int] = []

            def holds(number: int, last: int = last, asked: list[int] = asked) -> bool:
                asked.append(number)
                return number <= last

            assert instructions.last_that(holds, most) == (None if last < 0 else last)
            assert max(asked) <= 2 * max(last, 0) + 1
