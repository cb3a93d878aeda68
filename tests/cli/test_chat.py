"""``wholegpt chat``: commands, multi-line input, and models without instruction tuning."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import wholegpt as wg
from tests.helpers import text_of
from wholegpt.cli import main
from wholegpt.cli.chat import COMMANDS
from wholegpt.console import Console
from wholegpt.data.chat.template import Message
from wholegpt.runs import api
from wholegpt.settings.presets import configure

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    (folder / "text.txt").write_text(text_of(4000))
    model = {"context_length": 128, "n_layers": 1, "d_model": 16, "n_heads": 2}
    precision = {"precision": {"dtype": "float32"}, "runtime": {"device": "cpu"}}
    config = configure({"model": model, "training": {"steps": 2}, **precision})
    base = api.train(folder / "text.txt", config=config, out=folder / "base", console=QUIET).path
    rows = [{"prompt": f"{i}?", "response": f"the {i}"} for i in range(20)]
    (folder / "talk.json").write_text(json.dumps(rows))
    tuned = configure({"training": {"steps": 2}, **precision})
    return api.finetune(
        base, folder / "talk.json", task="instruct", config=tuned, out=folder / "talker", console=QUIET
    ).path


Chat = Callable[..., tuple[list[dict[str, str]], str]]


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Chat:
    def run(model: Path, *lines: str, options: tuple[str, ...] = ()) -> tuple[list[dict[str, str]], str]:
        waiting: Iterator[str] = iter(lines)

        def typed() -> str:
            try:
                return next(waiting)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr("builtins.input", typed)
        arguments = ["chat", str(model), "--json", "--max-tokens", "4", "--min-tokens", "4", *options]
        assert main(arguments) == 0
        printed = capsys.readouterr()
        return [json.loads(line) for line in printed.out.splitlines()], printed.err

    return run


def test_conversation_equals_the_python_interface(chat_model: Path, chat: Chat) -> None:
    found, printed_messages = chat(
        chat_model, "the one", "/temperature 0", "the two", "/reset", "the two", options=("--seed", "3")
    )
    assert "the temperature is now 0\na new conversation starts\n" in printed_messages
    lm = wg.load(chat_model)
    settings = {"max_tokens": 4, "min_tokens": 4, "console": QUIET}
    first = lm.chat([Message("user", "the one")], seed=3, **settings).text
    second = lm.chat(
        [Message("user", "the one"), Message("assistant", first), Message("user", "the two")],
        temperature=0,
        **settings,
    ).text
    third = lm.chat([Message("user", "the two")], temperature=0, **settings).text
    assert [one["content"] for one in found] == [first, second, third]


def test_system_message_starts_a_new_conversation_and_is_saved(
    chat_model: Path, chat: Chat, tmp_path: Path
) -> None:
    path = tmp_path / "talk.json"
    found, printed_messages = chat(
        chat_model, "lost", "/system be brief", "the", f"/save {path}", f"/save {path}"
    )
    assert json.loads(path.read_text()) == [
        {
            "messages": [
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": "the"},
                {"role": "assistant", "content": found[1]["content"]},
            ]
        }
    ]
    assert f"saved in {path}" in printed_messages and "already exists; name another FILE" in printed_messages
    assert "a new conversation starts, with a system message" in printed_messages
    rows = [one for _ in range(4) for one in json.loads(path.read_text())]
    for number, row in enumerate(rows):
        row["messages"][1]["content"] = f"the {number}"
    (tmp_path / "many.json").write_text(json.dumps(rows))
    data = wg.configure({"data": {"validation_fraction": 0.3}, "training": {"steps": 1}})
    again = api.finetune(
        chat_model.parent / "base",
        tmp_path / "many.json",
        task="instruct",
        config=data,
        out=tmp_path / "run",
        console=QUIET,
    )
    assert again.state.step == 1


def test_continued_lines_and_messages_that_start_with_a_slash(chat_model: Path, chat: Chat) -> None:
    found, printed_messages = chat(
        chat_model,
        "the\\",
        "two",
        " /the",
        "",
        "/nothing",
        "/reset now",
        "/temperature hot",
        "/temperature -1",
    )
    assert len(found) == 2 and [one["role"] for one in found] == ["assistant"] * 2
    for message in (
        "/nothing is not a command; /help lists them",
        "/reset now is not a command",
        "/temperature is 'hot'; expected a number",
        "temperature is -1",
    ):
        assert message in printed_messages


def test_help_lists_every_command(chat_model: Path, chat: Chat) -> None:
    _, printed_messages = chat(chat_model, "/help", "/quit", "never read")
    assert all(name in printed_messages for name in COMMANDS)


def test_model_without_instruction_tuning_continues_each_text(chat_model: Path, chat: Chat) -> None:
    base = chat_model.parent / "base"
    found, printed_messages = chat(base, "the one", "/system x", "the", options=("--temperature", "0"))
    assert (
        "continues each text and does not answer it" in printed_messages
        and "takes no system message" in printed_messages
    )
    lm = wg.load(base)
    settings = {"max_tokens": 4, "min_tokens": 4, "temperature": 0, "console": QUIET}
    assert [one["content"] for one in found] == [
        lm.generate(text, **settings).text for text in ("the one", "the")
    ]
