"""Instruction tuning: chat templates, packing, the loss of answers, chat, and runs."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from tests.helpers import tiny_config, tiny_models
from wholegpt.checkpoint import CheckpointStore, load_metadata, load_model
from wholegpt.cli import main
from wholegpt.console import Console
from wholegpt.data.chat.template import DEFAULT_TEMPLATE, ChatTemplate, EncodedConversation, Message
from wholegpt.data.examples.columns import TaskColumns
from wholegpt.data.examples.conversations import holds_conversations, read_conversations
from wholegpt.data.examples.packing import ConversationLoader, collate_conversations, pack
from wholegpt.data.reading.tables import Reading, read_table
from wholegpt.errors import ConfigError, DataError, WholeGPTError
from wholegpt.generation.request import GenerationRequest
from wholegpt.interop.conversion import export_model, import_model
from wholegpt.losses import negative_log_likelihood
from wholegpt.model import Transformer
from wholegpt.runs import api
from wholegpt.runs.load import load
from wholegpt.settings.choices import Dtype
from wholegpt.settings.presets import configure
from wholegpt.settings.schema import Config, GenerationConfig
from wholegpt.stages import answers as instructions
from wholegpt.stages.answers import answer_nats, answering, fit_conversations, fitting_turns
from wholegpt.tokenizers import byte_tokenizer
from wholegpt.training.objectives import LanguageModeling

QUIET = Console(quiet=True)
CHAT_ML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content | trim }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TALK = (
    Message("system", "Be brief."),
    Message("user", "What is <|endoftext|>?"),
    Message("assistant", "A token."),
    Message("user", "And ü?"),
    Message("assistant", "A letter."),
)
ANIMALS = {"wren": "bird", "heron": "bird", "trout": "fish", "eel": "fish", "robin": "bird", "perch": "fish"}
FAST: dict[str, Any] = {
    "training": {"epochs": 0, "steps": 60, "batch_size": 8},
    "optimizer": {"kind": "adamw", "learning_rate": 0.01, "weight_decay": 0.0},
    "schedule": {"warmup_steps": 4},
    "evaluation": {"every": 20, "patience": 0},
    "checkpointing": {"every": 0},
    "logging": {"every": 1, "sample_every": 0, "sample_tokens": 4},
    "precision": {"dtype": "float32"},
    "runtime": {"device": "cpu"},
}


def tokenizer_for(template: ChatTemplate) -> Any:
    known = byte_tokenizer()
    return known.with_special_tokens([n for n in template.special_tokens if known.id_of(n) is None])


@pytest.mark.parametrize("source", [DEFAULT_TEMPLATE, CHAT_ML], ids=["built-in", "ChatML"])
def test_chat_template_tokens_equal_those_of_transformers(source: str, tmp_path: Path) -> None:
    template = ChatTemplate(source)
    tokenizer = tokenizer_for(template)
    tokenizer.save(tmp_path / "tokenizer.json")
    theirs: Any = PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json"), chat_template=source
    )
    talk = [Message(one.role, one.content.replace("<|endoftext|>", "it")) for one in TALK]
    plain = [{"role": one.role, "content": one.content} for one in talk]
    assert template.encode(talk, tokenizer).token_ids == theirs.apply_chat_template(plain)["input_ids"]
    asked = theirs.apply_chat_template(plain[:-1], add_generation_prompt=True)["input_ids"]
    assert template.encode(talk[:-1], tokenizer, generation_prompt=True).token_ids == asked


@pytest.mark.parametrize("source", [DEFAULT_TEMPLATE, CHAT_ML], ids=["built-in", "ChatML"])
def test_only_answers_and_their_end_tokens_are_scored(source: str) -> None:
    template = ChatTemplate(source)
    tokenizer = tokenizer_for(template)
    encoded = template.encode(TALK, tokenizer)
    end = template.end_of_turn
    spans = [""]
    for token_id, counts in zip(encoded.token_ids, encoded.scored, strict=True):
        if counts:
            spans[-1] += tokenizer.decode([token_id])
        elif spans[-1]:
            spans.append("")
    assert [one for one in spans if one] == [f"A token.{end}", f"A letter.{end}"]
    # The user's text is never encoded as special tokens.
    assert encoded.token_ids.count(tokenizer.end_of_text_id) == (2 if end == "<|endoftext|>" else 0)
    # An answer is preceded by the generation prompt.
    asked = template.encode(TALK[:2], tokenizer, generation_prompt=True).token_ids
    assert encoded.token_ids[: len(asked)] == asked and encoded.scored[len(asked)]


BAD_TEMPLATES = {
    "{% for message in messages %}{{ message.content }}": "does not compile: line 1",
    "{{ messages[0].content }}": "must render every message's content once",
    "{% for m in messages %}{{ m.content | upper }}<|endoftext|>{% endfor %}": "content unchanged, or stripped",
    "{% for m in messages %}{{ m.content | e }}<|endoftext|>{% endfor %}": "No filter named 'e'",
    "{% for m in messages %}{{ m.content }}{% endfor %}": "produces no special token",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}": "fails: SecurityError",
    "{{ messages.append(1) }}": "fails: SecurityError",
    "{% for i in range(1000000000) %}x{% endfor %}": "fails: SecurityError: its loops are too long",
    "{% for i in range(9000) %}{% for j in range(9000) %}x{% endfor %}{% endfor %}": "more than 10,000 steps",
    "{% for a in 'x ' * 9 %}{% endfor %}": "* accepts only small numbers",
    "{% set n = namespace(x='x') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}": "more than 1,0",
    "{% set n = namespace(x='x') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}": "more than 1,0",
    "{% set n = namespace(x='x') %}{% for i in range(99) %}{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}{% endfor %}": (
        "more than 1,0"
    ),
    "{% set n = namespace(x=[1]) %}{% for i in range(99) %}{% set n.x = [n.x, n.x] %}{% endfor %}": "too large",
    "{% macro a(n) %}{{ a(n - 1) ~ a(n - 1) if n else '' }}{% endmacro %}{{ a(50) }}": "more than 10,000 steps",
    "{% for a in [[1]] recursive %}{{ loop(a) }}{% endfor %}": "a recursive loop is not allowed in chat templates",
    "{{ 'x'.ljust(1000000000) }}": "SecurityError: access to attribute 'ljust'",
    "{{ '{:1000000000}'.format(1) }}": "SecurityError",
    "{{ (['x', 'x'] | join('x')).zfill(1000000000) }}": "SecurityError",
    "{{ lipsum(n=100000) }}": "fails: UndefinedError",
    "{{ (messages | list).pop.__self__ }}": "fails",
    "{{ 'x' * 1000000000 }}": "fails: SecurityError",
    "{{ '%1000000000d' % 1 }}": "fails: SecurityError",
    "{{ 'x' | center(1000000000) }}": "does not compile",
    "{{ nothing.at.all }}": "fails: UndefinedError",
    "{% include '/etc/passwd' %}": "does not compile: line 1: include is not allowed in chat templates",
    "{% block a %}{% endblock %}{{ self.a() }}": "block is not allowed in chat templates",
    "{{ 9 ** 9 }}": "pow is not allowed in chat templates",
    "{% set n = namespace(a='x') %}{% set n = namespace(a=n, b=n) %}": "too large",
    "{% set n = namespace(a='x') %}{% set n.a = [n] %}": "too large",
    "{{ {}.fromkeys(range(9000), 'a') }}": "SecurityError",
    "{{ (5).to_bytes(3000000000, 'big') }}": "SecurityError",
    "{{ range(3000) | list | tojson(indent=1000000) }}": "fails: TypeError",
    "{% set n = namespace(l=[], s='x' * 9) %}": "SecurityError",
    "{% set n = namespace(l=[]) %}{% for i in range(9999) %}{% set n.l = n.l + [i ~ '"
    + "x" * 999
    + "'] %}{% endfor %}": ("too large"),
    "{% if 1 %}" * 200 + "{% endif %}" * 200: "does not compile",
    "{% for i in [1] %}" * 30 + "{% endfor %}" * 30: "does not compile",
    "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}": "does not compile",
    "{{ raise_exception('not so') }}": "not so",
    "x" * 30_000: "has 30,000 characters",
}


@pytest.mark.parametrize("source", BAD_TEMPLATES, ids=lambda text: text[:30])
def test_invalid_templates_are_rejected(source: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ChatTemplate(source)
    assert BAD_TEMPLATES[source] in str(caught.value) and "the chat template" in str(caught.value)


def test_template_without_system_messages() -> None:
    source = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('No system here') }}{% endif %}"
        "<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    )
    template = ChatTemplate(source)
    assert template.special_tokens == ["<|user|>", "<|end|>", "<|assistant|>"]
    with pytest.raises(ConfigError, match=r"the chat template rejects the messages: No system here$"):
        template.encode(TALK, tokenizer_for(template))


@pytest.mark.parametrize(
    "content",
    [
        "{{ m.content if '<b' not in m.content else 'cut' }}",
        "{% if m.content | length > 40 %}Long: {% endif %}{{ m.content }}",
        "{{ m.content.removeprefix('<b') }}",
    ],
)
def test_template_that_sometimes_changes_the_content_is_an_error(content: str) -> None:
    """The error occurs with the first conversation whose content is changed."""
    template = ChatTemplate("{% for m in messages %}" + content + "<|endoftext|>{% endfor %}")
    template.encode([Message("user", "short")], byte_tokenizer())
    with pytest.raises(ConfigError, match="content unchanged, or stripped"):
        template.encode([Message("user", "<b" + "x" * 99)], byte_tokenizer())


def test_template_may_strip_the_content() -> None:
    source = (
        "{% for m in messages %}{{ m.role }}: {{ m.content | trim }}{% if m.role == 'assistant' %}<|endoftext|>"
        "{% endif %}{% endfor %}"
    )
    messages = [Message("user", " What? "), Message("assistant", " This.\n")]
    tokenizer = byte_tokenizer()
    encoded = ChatTemplate(source).encode(messages, tokenizer)
    assert tokenizer.decode(encoded.token_ids) == "user: What?assistant: This.<|endoftext|>"


FORMS = {
    "ShareGPT": (
        [{"conversations": [{"from": "human", "value": "Add"}, {"from": "gpt", "value": "2"}]}],
        "Add",
        "2",
    ),
    "instructions": ([{"instruction": "Add", "input": "1 1", "output": "2"}], "Add\n\n1 1", "2"),
    "Dolly": (
        [{"instruction": "Add", "context": "1 1", "response": "2", "category": "x"}],
        "Add\n\n1 1",
        "2",
    ),
    "no input": ([{"instruction": "Add", "input": "", "output": "2"}], "Add", "2"),
    "pairs": ([{"prompt": "Add", "response": "2", "id": 7}], "Add", "2"),
    "questions": ([{"question": "Add", "answer": "2"}], "Add", "2"),
    "messages": (
        [{"messages": [{"role": "user", "content": "Add"}, {"role": "assistant", "content": "2"}]}],
        "Add",
        "2",
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_common_formats_of_conversations(form: str, suffix: str, tmp_path: Path) -> None:
    records, asked, answer = FORMS[form]
    path = tmp_path / f"data.{suffix}"
    path.write_text(json.dumps(records) if suffix == "json" else "\n".join(map(json.dumps, records)))
    expected = [(Message("user", asked), Message("assistant", answer))]
    assert read_conversations(read_table(path))[0] == expected


def test_columns_of_prompt_and_answer_by_name(tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text("long\tshort\nA long text\tbrief\n")
    expected = [(Message("user", "A long text"), Message("assistant", "brief"))]
    assert read_conversations(read_table(path), TaskColumns(("long",), (), "short"))[0] == expected
    assert not holds_conversations(path, Reading())
    assert holds_conversations(path, Reading(), TaskColumns(("long",), (), "short"))
    path.write_text("question\tchoices\tanswer\nA or B?\tthese\tB\n")
    assert not holds_conversations(path, Reading())


BAD_DATA: dict[str, tuple[Any, str]] = {
    "no answers": ([{"instruction": "Add"}], "has no column of answers"),
    "no prompts": ([{"output": "2"}], "has no column of prompts"),
    "empty answer": ([{"prompt": "Add", "response": " "}], "line 1: has no answer in 'response'"),
    "empty prompt": ([{"prompt": "", "response": "2"}], "line 1: has an empty text in 'prompt'"),
    "role": ([{"messages": [{"role": "robot", "content": "Hi"}]}], "the role 'robot' is unknown"),
    "turns": (
        [{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}],
        "user and assistant must alternate",
    ),
    "unanswered": (
        [{"messages": [{"role": "user", "content": "a"}]}],
        "has no assistant message",
    ),
    "content": (
        [{"messages": [{"role": "user", "content": 3}]}],
        "a message needs a role and a content that is text",
    ),
    "no list": ([{"messages": "hello"}], "expected a list of messages"),
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_invalid_conversations_are_rejected(name: str, tmp_path: Path) -> None:
    records, message = BAD_DATA[name]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    with pytest.raises(DataError, match=message):
        read_conversations(read_table(path))


@given(st.lists(st.integers(1, 20), min_size=1, max_size=40))
def test_packing_keeps_every_conversation_once_in_few_rows(lengths: list[int]) -> None:
    rows = pack(lengths, 20)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    filled = [sum(lengths[index] for index in row) for row in rows]
    assert max(filled) <= 20
    assert len(rows) <= 11 / 9 * -(-sum(lengths) // 20) + 4
    assert sum(2 * one <= 20 for one in filled) <= 1  # two half-empty rows would have been merged


CONVERSATIONS = st.lists(
    st.tuples(st.lists(st.integers(0, 36), min_size=2, max_size=6), st.integers(1, 5)), min_size=1, max_size=5
)


@given(st.sampled_from(sorted(tiny_models())), CONVERSATIONS)
def test_packed_answers_cost_what_they_cost_alone(kind: str, made: list[tuple[list[int], int]]) -> None:
    """Packing causes no leakage between conversations: the loss equals that of each conversation alone."""
    torch.manual_seed(0)
    model = Transformer(tiny_models()[kind]).double().eval()
    conversations = [
        EncodedConversation(ids, [index >= min(first, len(ids) - 1) for index in range(len(ids))])
        for ids, first in made
    ]
    loader = ConversationLoader(conversations, model.context_length, 2, seed=1)
    batch = collate_conversations(loader.rows)
    objective = LanguageModeling()
    total = objective(model, batch).total
    alone = torch.zeros((), dtype=torch.float64)
    for one in conversations:
        logits = model(torch.tensor([one.token_ids[:-1]]))
        nats = negative_log_likelihood(logits, torch.tensor([one.token_ids[1:]]))[0]
        alone = alone + sum((nats[i - 1] for i in range(1, len(nats) + 1) if one.scored[i]), torch.zeros(()))
    alone = alone.detach()
    torch.testing.assert_close(total.detach(), alone)
    assert objective.count(batch) == sum(sum(one.scored[1:]) for one in conversations)
    found = answer_nats(model, conversations, Dtype.float32)
    assert found.sum() == pytest.approx(alone.item(), rel=1e-5, abs=1e-5)


def test_conversations_longer_than_the_context_are_truncated_or_skipped() -> None:
    template = ChatTemplate()
    tokenizer = tokenizer_for(template)
    short = (Message("user", "Hi"), Message("assistant", "Yes"))
    long = (Message("user", "Hi"), Message("assistant", "Yes, " * 20))
    hopeless = (Message("user", "Hi" * 50), Message("assistant", "Yes"))
    fitted = fit_conversations([short, long, hopeless], template, tokenizer, 20)
    assert [(len(one.encoded.token_ids), one.cut) for one in fitted] == [(8, False), (21, True)]
    with pytest.raises(
        DataError,
        match="none of 1 conversations has an answer that begins within its first 20 tokens",
    ):
        fit_conversations([hopeless], template, tokenizer, 20)


def test_oldest_turns_are_dropped_to_fit_the_context() -> None:
    template = ChatTemplate()
    tokenizer = tokenizer_for(template)
    talk = [Message("system", "s"), *(Message(("user", "assistant")[i % 2], "x" * 20) for i in range(7))]
    kept = fitting_turns(talk, template, tokenizer, 100, 20)
    assert kept[0].role == "system" and kept[1].role == "user" and kept[-1] == talk[-1] and 3 < len(kept) < 8
    with pytest.raises(DataError, match=r"^the question has 103 tokens; the context is 50 tokens, including"):
        fitting_turns([Message("user", "x" * 101)], template, tokenizer, 50, 10)
    told = [Message("system", "x" * 101), Message("user", "y")]
    with pytest.raises(DataError, match="the system's message and the question have"):
        fitting_turns(told, template, tokenizer, 50, 10)


def conversations(path: Path, count: int = 80, seed: int = 0) -> Path:
    """Write conversations that ask which kind each animal is; large files contain all six animals."""
    generator = random.Random(seed)
    names = [generator.choice(sorted(ANIMALS)) for _ in range(count)]
    path.write_text(json.dumps([{"prompt": f"{name}?", "response": ANIMALS[name]} for name in names]))
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    (folder / "text.txt").write_text("a wren is a bird, an eel is a fish.\n" * 80)
    model = {"context_length": 32, "n_layers": 2, "d_model": 32, "n_heads": 2}
    config = tiny_config(
        folder / "text.txt", model=model, tokenizer={"kind": "byte"}, training={"steps": 100}
    )
    return api.train(config=config, out=folder / "run", console=QUIET).path


def settings(**sections: dict[str, Any]) -> Config:
    return configure(
        {name: {**FAST.get(name, {}), **sections.get(name, {})} for name in {**FAST, **sections}}
    )


@pytest.fixture(scope="module")
def chat_model(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that knows what the animals are; tests only read it."""
    folder = tmp_path_factory.mktemp("talker")
    held_out = conversations(folder / "dev.json", 20, seed=9)
    data = conversations(folder / "data.json")
    return api.finetune(
        base,
        data,
        task="instruct",
        validation=held_out,
        config=settings(),
        out=folder / "run",
        console=QUIET,
    ).path


def test_model_learns_to_answer_and_to_stop(chat_model: Path, tmp_path: Path) -> None:
    lm = load(chat_model, console=QUIET)
    answer = lm.chat([{"role": "user", "content": "heron?"}], temperature=0.0)
    assert (answer.text, answer.finish_reason) == ("bird", "end_of_text")
    pieces: list[str] = []
    lm.chat([Message("user", "trout?")], temperature=0.0, emit=pieces.append)
    assert "".join(pieces) == "fish"
    score = lm.evaluate_task(conversations(tmp_path / "test.json", 20, seed=4), console=QUIET)
    assert score.metrics["stopped"].value == 1 and score.metrics["empty"].value == 0
    assert score.metrics["median_length_ratio"].value == 1
    # Over four letters and the end token, for a model that knows all but the kind.
    which_of_two = math.log(2) / 5
    assert score.metrics["nats_per_token"].value < which_of_two
    assert score.metrics["rouge1"].value == 1
    with pytest.raises(ConfigError, match="user and assistant must alternate"):
        lm.chat([{"role": "assistant", "content": "bird"}])


def test_run_saves_the_template_and_metrics(chat_model: Path) -> None:
    folder = CheckpointStore(chat_model).choose("last")[0]
    assert (
        (folder / "chat_template.jinja").read_text()
        == DEFAULT_TEMPLATE
        == load_metadata(folder).chat_template
    )
    lines = [json.loads(line) for line in (chat_model / "metrics.jsonl").read_text().splitlines()]
    first, *_, last = [line["nats_per_token"] for line in lines if line["kind"] == "validation"]
    assert lines[0]["step"] == 0 and first > 1 > last  # before and after
    page = (chat_model / "report.html").read_text()
    assert "What is learned" in page and "<mark>" in page and "Answers" in page
    theirs = PreTrainedTokenizerFast.from_pretrained(str(folder))
    assert theirs.chat_template == DEFAULT_TEMPLATE


@pytest.fixture(scope="module")
def adapted(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with another template and LoRA; tests only read it."""
    folder = tmp_path_factory.mktemp("adapted")
    (folder / "chatml.jinja").write_text(CHAT_ML)
    config = settings(
        finetuning={"chat_template": str(folder / "chatml.jinja")},
        lora={"rank": 8},
        training={"steps": 100},
        optimizer={"learning_rate": 0.02},
    )
    held_out = conversations(folder / "dev.json", 20, seed=9)
    data = conversations(folder / "data.json")
    return api.finetune(
        base,
        data,
        task="instruct",
        validation=held_out,
        config=config,
        out=folder / "run",
        console=QUIET,
    ).path


def test_answers_stop_with_another_template(base: Path, adapted: Path) -> None:
    answer = load(adapted).chat([{"role": "user", "content": "eel?"}], temperature=0.0)
    assert answer.finish_reason == "stop" and "<|im" not in answer.text
    before = load_model(CheckpointStore(base).choose("best")[0]).model.state_dict()["token_embedding.weight"]
    after = load_model(CheckpointStore(adapted).choose("last")[0]).model.state_dict()[
        "token_embedding.weight"
    ]
    assert torch.equal(after[: len(before)], before) and len(after) == len(before) + 2


def test_exported_adapter_restores_the_model_from_its_base(base: Path, adapted: Path, tmp_path: Path) -> None:
    """With the embeddings of its new tokens and its template; peft gives the same outputs."""
    made = export_model(adapted, "peft", tmp_path / "adapter", console=QUIET)
    assert sorted(path.name for path in made.files) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "base.json",
        "chat_template.jinja",
        "tokenizer.json",
    ]
    assert [one.opened_by.split()[0] for one in made.parity_reports] == ["wholegpt", "peft"]
    whole = sum(path.stat().st_size for path in CheckpointStore(base).choose("best")[0].glob("model*"))
    assert (tmp_path / "adapter/adapter_model.safetensors").stat().st_size < whole / 3
    again = import_model(tmp_path / "adapter", tmp_path / "model", onto=base, console=QUIET)
    asked = [{"role": "user", "content": "eel?"}]
    first, second = load(adapted, console=QUIET), load(again, console=QUIET)
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name])
    assert first.chat(asked, temperature=0.0).text == second.chat(asked, temperature=0.0).text
    with pytest.raises(ConfigError, match="name its base run or model with --onto"):
        import_model(tmp_path / "adapter", tmp_path / "other", console=QUIET)
    with pytest.raises(ConfigError, match="neither LoRA nor a head"):
        import_model(tmp_path / "adapter", tmp_path / "other", onto=adapted, console=QUIET)
    with pytest.raises(ConfigError, match="has no LoRA; `wholegpt finetune --lora"):
        export_model(base, "peft", tmp_path / "none", console=QUIET)
    assert not (tmp_path / "other").exists() and not (tmp_path / "none").exists()


def test_chat_template_round_trips_through_export_and_import(adapted: Path, tmp_path: Path) -> None:
    export_model(adapted, "huggingface", tmp_path / "theirs", console=QUIET)
    theirs = PreTrainedTokenizerFast.from_pretrained(str(tmp_path / "theirs"))
    asked = [{"role": "user", "content": "eel?"}]
    lm = load(import_model(tmp_path / "theirs", tmp_path / "again", console=QUIET), console=QUIET)
    encoded: Any = theirs.apply_chat_template(asked, add_generation_prompt=True)
    assert (
        encoded["input_ids"]
        == lm.answering_template()
        .encode([Message(**one) for one in asked], lm.tokenizer, generation_prompt=True)
        .token_ids
    )
    settings = json.loads((tmp_path / "theirs/generation_config.json").read_text())
    assert settings["eos_token_id"] == lm.tokenizer.id_of("<|im_end|>")
    assert lm.chat(asked, temperature=0.0).text == load(adapted).chat(asked, temperature=0.0).text


def test_conversations_that_do_not_fit_are_skipped_with_a_note(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [{"prompt": "wren?" * (1 + 9 * (n % 5 == 0)) + f"{n}", "response": "bird"} for n in range(40)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, records)))
    config = settings(training={"steps": 2}, data={"validation_fraction": 0.5})
    run = api.finetune(
        base, tmp_path / "data.jsonl", task="instruct", config=config, out=tmp_path / "run", console=QUIET
    )
    capsys.readouterr()
    score = run.load().evaluate_task(tmp_path / "data.jsonl", console=QUIET)
    assert score.examples == 32
    assert "8 of 40 conversations have no answer within the model's context of 32" in capsys.readouterr().err


def test_question_longer_than_the_context_is_not_used() -> None:
    template, tokenizer = ChatTemplate(), tokenizer_for(ChatTemplate())
    talk = (
        Message("user", "u"),
        Message("assistant", "a"),
        Message("user", "m" * 99),
        Message("assistant", "b"),
    )
    (fitted,) = fit_conversations([talk], template, tokenizer, 32)
    assert fitted.cut and fitted.question == talk[:1]
    (whole,) = fit_conversations([talk], template, tokenizer, 200)
    assert not whole.cut and whole.question == talk[:3]


def test_special_tokens_are_banned_from_answers() -> None:
    template = ChatTemplate()
    tokenizer = tokenizer_for(template)
    config = answering(GenerationConfig(), template, tokenizer)
    banned = {token_id for token_id, bias in config.logit_bias if bias < -1e5}
    assert banned == {tokenizer.id_of(f"<|{role}|>") for role in ("system", "user", "assistant")}


@pytest.fixture(autouse=True)
def short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instructions, "MOST_GENERATED_TOKENS", 12)


def test_instruction_tuning_resumes_bit_for_bit(base: Path, tmp_path: Path) -> None:
    data, config = (
        conversations(tmp_path / "data.json", 40),
        settings(training={"steps": 9}, model={"dropout": 0.1}),
    )
    whole = api.finetune(base, data, task="instruct", config=config, out=tmp_path / "whole", console=QUIET)
    api.finetune(
        base, data, task="instruct", config=config, out=tmp_path / "cut", max_seconds=1e-9, console=QUIET
    )
    data.unlink()
    resumed = api.resume(tmp_path / "cut", console=QUIET)
    last = [CheckpointStore(run.path).path(9) for run in (whole, resumed)]
    for name in ("model.safetensors", "training/optimizer.safetensors"):
        assert (last[0] / name).read_bytes() == (last[1] / name).read_bytes()
    assert resumed.validation == whole.validation


def test_chat_on_the_command_line(
    chat_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    messages = iter(["wren?", "/reset", "", "eel?", "/quit"])
    monkeypatch.setattr("builtins.input", lambda: next(messages))
    assert main(["chat", str(chat_model), "--temperature", "0", "--quiet"]) == 0
    assert capsys.readouterr().out.split() == ["bird", "fish"]


def test_ctrl_c_ends_the_answer_but_not_the_chat(
    chat_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    messages = iter(["wren?", "eel?", "/quit"])
    monkeypatch.setattr("builtins.input", lambda: next(messages))
    step, calls = "wholegpt.generation.engine.Engine.step", 0
    from wholegpt.generation.engine import Engine

    original = Engine.step

    def press(self: Engine) -> list[GenerationRequest]:
        nonlocal calls
        calls += 1
        if calls == pressed:
            raise KeyboardInterrupt
        return original(self)

    monkeypatch.setattr(step, press)
    pressed = 3
    assert main(["chat", str(chat_model), "--temperature", "0", "--quiet"]) == 0
    first, second = capsys.readouterr().out.split()
    assert "bird".startswith(first) and first != "bird" and second in ("bird", "fish")
    messages, calls, pressed = iter(["wren?", "eel?", "/quit"]), 0, 1
    assert main(["chat", str(chat_model), "--temperature", "0", "--quiet", "--json"]) == 0
    printed = capsys.readouterr()
    answers = [json.loads(line) for line in printed.out.splitlines()]
    assert [(one["content"], one["finish_reason"]) for one in answers] == [
        ("", "interrupted"),
        ("fish", "end_of_text"),
    ]
    assert "empty response; this message is removed" in printed.err


def test_invalid_settings_are_rejected(base: Path, tmp_path: Path) -> None:
    data = conversations(tmp_path / "data.json", 20)
    cases: list[tuple[dict[str, Any], type[WholeGPTError], str]] = [
        (
            {
                "finetuning": {"chat_template": str(tmp_path / "none")},
                "data": {"validation_fraction": 0.5},
            },
            DataError,
            "none: no such file",
        ),
        ({"data": {"validation_fraction": 0.001}}, DataError, "too few to hold 0% of them out"),
    ]
    for sections, error, message in cases:
        with pytest.raises(error, match=message):
            api.finetune(
                base, data, task="instruct", config=settings(**sections), out=tmp_path / "run", console=QUIET
            )
    assert not (tmp_path / "run").exists()
