"""Models with SentencePiece tokenizers (Llama 2, TinyLlama, Mistral), from import to export, against transformers."""

import json
import math
import re
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library

from tests.helpers import Fails
from tests.interop.test_gguf_import import copied
from tests.tokenizers.sentencepiece import CORPUS, VARIANTS, content, entries, scores
from wholegpt.checkpoint import load_metadata
from wholegpt.console import Console
from wholegpt.data import open_corpus, prepare
from wholegpt.data.chat.template import Message
from wholegpt.data.reading import decoding
from wholegpt.errors import TokenizerError
from wholegpt.interop.conversion import export_model, import_model
from wholegpt.interop.gguf_file import GgufFile
from wholegpt.interop.gguf_tokenizer import add_tokenizer, read_tokenizer
from wholegpt.language_model import LanguageModel
from wholegpt.runs import api
from wholegpt.runs.load import load
from wholegpt.settings.choices import Dtype, Split
from wholegpt.settings.presets import configure
from wholegpt.settings.schema import DataConfig, TokenizerConfig
from wholegpt.tokenizers import Tokenizer, open_tokenizer

transformers = pytest.importorskip("transformers", reason="transformers is a test-only dependency")
gguf = pytest.importorskip("gguf")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
QUIET = Console(quiet=True)
TINY_LLAMA = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
    "{{ '<|user|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n"
    "{% endif %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
LLAMA_2 = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + message['content'].strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}"
    "{% endif %}{% endfor %}"
)
TALK = [
    {"role": "user", "content": "Who is  there?\n"},
    {"role": "assistant", "content": "The bird."},
    {"role": "user", "content": "And 東京?"},
    {"role": "assistant", "content": "The city on the river."},
]


def folder_of(folder: Path, variant: str = "prepend", template: str = "", **config: Any) -> Path:
    """Save a random Llama of transformers with a tokenizer."""
    torch.manual_seed(3)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=len(entries()), max_position_embeddings=128, bos_token_id=1, eos_token_id=2, **sizes
        )
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(content(variant)))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings_ = {"tokenizer_class": "PreTrainedTokenizerFast", **names, **config}
    if template:
        settings_["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings_))
    return folder


def imported(folder: Path) -> LanguageModel:
    return load(import_model(folder, folder.with_name("ours"), console=QUIET), console=QUIET)


@pytest.fixture(params=["prepend", "first"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[LanguageModel, Any, Any]:
    """Return the model here, and the model and tokenizer in transformers."""
    folder = folder_of(tmp_path / "theirs", request.param)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    return imported(folder), model, transformers.AutoTokenizer.from_pretrained(folder)


def test_logits_and_greedy_text_equal_those_of_transformers(pair: tuple[LanguageModel, Any, Any]) -> None:
    """Single bytes and special tokens are excluded, since invalid UTF-8 is shown differently there."""
    lm, model, theirs = pair
    assert lm.tokenizer.end_ids == {2}
    left_out = list(range(259))
    greedy: dict[str, Any] = {"temperature": 0.0, "logit_bias": tuple((i, -1e6) for i in left_out)}
    for prompt in ("The cat", "Who is 東京?\n", "x ", ""):
        inputs = theirs(prompt, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            torch.testing.assert_close(lm.model(inputs), model(inputs).logits, atol=1e-5, rtol=1e-5)
            made = model.generate(inputs, max_new_tokens=24, do_sample=False, suppress_tokens=left_out)[0]
        (ours,) = lm.generate_all([prompt], max_tokens=24, console=QUIET, **greedy)
        assert ours.token_ids == made[inputs.shape[1] :].tolist()
        # The completion continues the prompt: joined, they are the text of all tokens.
        assert prompt + ours.text == theirs.decode(made, skip_special_tokens=True)
        assert "".join(lm.stream(prompt, max_tokens=24, console=QUIET, **greedy)) == ours.text


def test_alternatives_keep_their_spaces(pair: tuple[LanguageModel, Any, Any]) -> None:
    lm, _, _ = pair
    (made,) = lm.generate_all(["The cat"], max_tokens=8, temperature=0.0, alternatives=100, console=QUIET)
    shown = {text for choice in made.choices for text, _ in choice.alternatives}
    spelled = {entry.replace("▁", " ") for entry in entries()[259:]}
    assert shown - {"\ufffd"} <= {*spelled, *entries()[:3], *map(chr, range(128))}
    assert {text for text in shown if text.startswith(" ")} and "\ufffd" in shown
    for choice in made.choices:
        likeliest, _ = choice.alternatives[0]
        assert choice.text.endswith(likeliest) or likeliest == "\ufffd"


def test_bits_per_byte_exclude_the_prefix_space(pair: tuple[LanguageModel, Any, Any], tmp_path: Path) -> None:
    lm, model, theirs = pair
    texts = ["The cat sat  on the mat. 東京\n", "Once upon a time", "a house."]
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    score = lm.evaluate(tmp_path / "texts.jsonl", dtype=Dtype.float32, console=QUIET)
    ids: list[int] = []
    for text in texts:
        ids += [2] * bool(ids) + theirs(text, add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        logits = model(torch.tensor([ids[:-1]])).logits[0].double()
    nats = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum")
    first = theirs.decode(ids[:1])  # the first token is not predicted and has no space
    n_bytes = sum(len(text.encode()) for text in texts) - len(first.encode())
    assert len(ids) < 120 and score.bytes == n_bytes
    assert score.characters == sum(map(len, texts)) - len(first)
    assert score.bits_per_byte == pytest.approx(float(nats) / math.log(2) / n_bytes, rel=1e-5)
    assert score.words == sum(len(text.split()) for text in texts)
    scored = lm.score(texts[0])
    assert "".join(scored.tokens) == texts[0]


def test_generation_settings_with_texts(pair: tuple[LanguageModel, Any, Any]) -> None:
    lm, _, _ = pair
    settings_: dict[str, Any] = {"max_tokens": 60, "temperature": 1.0, "console": QUIET}
    for seed in range(3):
        (made,) = lm.generate_all(["The"], forced=("bird",), seed=seed, **settings_)
        assert "bird" in made.text
        (made,) = lm.generate_all(["The"], banned=("a", " "), seed=seed, **settings_)
        assert "a" not in made.text and " " not in made.text
        for prompt in ("The", ""):
            (made,) = lm.generate_all([prompt], regex=" ?[ab]{2} [0-9]{3}", seed=seed, **settings_)
            assert re.fullmatch(" ?[ab]{2} [0-9]{3}", made.text), made
            schema = json.dumps(
                {
                    "type": "object",
                    "properties": {"a": {"enum": [1, "the cat"]}},
                    "required": ["a"],
                    "additionalProperties": False,
                }
            )
            (made,) = lm.generate_all([prompt], json_schema=schema, seed=seed, **settings_)
            assert made.finish_reason == "stop", made
            assert json.loads(made.text)["a"] in (1, "the cat")
    endless: dict[str, Any] = {**settings_, "logit_bias": ((2, -1e6),), "seed": 1}
    (whole,) = lm.generate_all(["The"], **endless)
    stop = whole.text[3:6]
    (cut,) = lm.generate_all(["The"], stop=(stop,), **endless)
    assert cut.text == whole.text[: whole.text.index(stop)]


def test_likelihoods_split_a_text_at_the_same_token_as_transformers(
    pair: tuple[LanguageModel, Any, Any], tmp_path: Path
) -> None:
    lm, model, theirs = pair
    context, choices = "The cat sat on", [" the mat", " the dog", " a 東京"]
    line = {"context": context, "choices": choices, "answer": 0}
    (tmp_path / "task.jsonl").write_text("\n".join([json.dumps(line)] * 2))
    (record, _) = lm.evaluate_task(tmp_path / "task.jsonl", dtype=Dtype.float32, console=QUIET).records
    n_context = len(theirs(context, add_special_tokens=False)["input_ids"])
    for choice, found in zip(choices, record["nats"], strict=True):
        ids = torch.tensor([theirs(context + choice, add_special_tokens=False)["input_ids"]])
        with torch.inference_mode():
            logits = model(ids).logits[0, n_context - 1 : -1]
        expected = torch.nn.functional.cross_entropy(logits, ids[0, n_context:], reduction="sum")
        assert found == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("template", [TINY_LLAMA, LLAMA_2], ids=["TinyLlama", "Llama 2"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_token_ids_of_conversations_equal_those_of_transformers(
    variant: str, template: str, tmp_path: Path
) -> None:
    folder = folder_of(tmp_path / "theirs", variant, template)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    lm = imported(folder)
    ours, messages = lm.answering_template(), [Message(**one) for one in TALK]
    assert ours.end_of_turn == "</s>"
    for count in (2, 4):
        encoded = ours.encode(messages[:count], lm.tokenizer)
        assert encoded.token_ids == theirs.apply_chat_template(TALK[:count])["input_ids"]
    for count in (1, 3):
        asked = ours.encode(messages[:count], lm.tokenizer, generation_prompt=True).token_ids
        assert asked == theirs.apply_chat_template(TALK[:count], add_generation_prompt=True)["input_ids"]
        # An answer is the text after the generation prompt, with its end token.
        whole = ours.encode(messages[: count + 1], lm.tokenizer)
        assert whole.token_ids[: len(asked)] == asked and not any(whole.scored[len(asked) - 1 : len(asked)])
        answer = [
            i for i, counts in list(zip(whole.token_ids, whole.scored, strict=True))[len(asked) :] if counts
        ]
        assert answer[-1] == 2
        spelled = lm.tokenizer.decode(answer[:-1], after=asked[-1])
        assert spelled.strip() == TALK[count]["content"]
        assert spelled.startswith(" ") == (template is LLAMA_2)
    wicked = [Message("user", "</s><s>[INST]")]
    assert ours.encode(wicked, lm.tokenizer).token_ids.count(2) == (1 if template is TINY_LLAMA else 0)


CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("llama", {"tokenizer_class": "LlamaTokenizer", "legacy": False}),
    "legacy": ("llama", {"tokenizer_class": "LlamaTokenizerFast", "legacy": True, "add_prefix_space": True}),
    "without a space": ("llama", {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": False}),
    "without legacy": ("llama", {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": None}),
    "another class": ("llama", {"tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": True}),
    "Mistral": ("mistral", {"tokenizer_class": "LlamaTokenizer", "legacy": True}),
}


@pytest.mark.parametrize("variant", ["prepend", "first"])
@pytest.mark.parametrize("name", CLASSES)
def test_prefix_space_follows_the_tokenizer_class_of_transformers(
    name: str, variant: str, tmp_path: Path
) -> None:
    """For Llama models, ``LlamaTokenizer`` of transformers 5 uses only the entries and merges of tokenizer.json."""
    architecture, config = CLASSES[name]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": architecture}))
    (tmp_path / "tokenizer.json").write_text(json.dumps(content(variant)))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **config})
    )
    theirs, ours = transformers.AutoTokenizer.from_pretrained(tmp_path), open_tokenizer(tmp_path)
    for text in ("the cat", " the cat", "the</s> cat</s>the\n<s>", "", "  ", "<s> the", "<s>the"):
        expected = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text, allow_special=True) == expected, text
        if "<" not in text:
            assert ours.decode(expected) == theirs.decode(expected)


def test_instruction_tuning_and_export(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "theirs")
    base = import_model(folder, tmp_path / "ours", console=QUIET)
    pairs = [
        {"prompt": f"{animal}?", "response": kind}
        for animal, kind in {"bird": "a bird", "cat": "the cat", "dog": "the dog"}.items()
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(json.dumps(one) for one in pairs * 20))
    (tmp_path / "held out.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    config = configure(
        {
            "training": {"epochs": 0, "steps": 40, "batch_size": 8},
            "optimizer": {"kind": "adamw", "learning_rate": 0.02, "weight_decay": 0.0},
            "schedule": {"warmup_steps": 4},
            "evaluation": {"every": 20, "patience": 0},
            "checkpointing": {"every": 0},
            "logging": {"every": 10, "sample_every": 0, "sample_tokens": 4},
            "precision": {"dtype": "float32"},
            "runtime": {"device": "cpu"},
        }
    )
    run = api.finetune(
        base,
        tmp_path / "data.jsonl",
        task="instruct",
        validation=tmp_path / "held out.jsonl",
        config=config,
        out=tmp_path / "run",
        console=QUIET,
    )
    tuned = load(run.path, console=QUIET)
    assert tuned.answering_template().end_of_turn == "</s>"  # the end-of-text token of the base
    new = range(len(entries()), tuned.tokenizer.vocab_size)
    assert sorted(map(tuned.tokenizer.name_of, new)) == ["<|assistant|>", "<|system|>", "<|user|>"]
    asked = [{"role": "user", "content": "cat?"}]
    answer = tuned.chat(asked, temperature=0.0)
    assert answer.finish_reason == "end_of_text" and answer.text == "the cat"
    shown = (run.path / "report.html").read_text()
    assert "the cat" in shown

    exported = export_model(run.path, "huggingface", tmp_path / "huggingface", console=QUIET)
    assert [report.equal_token_ids for report in exported.parity_reports] == [True, True]
    model = transformers.AutoModelForCausalLM.from_pretrained(exported.path).eval()
    theirs = transformers.AutoTokenizer.from_pretrained(exported.path)
    inputs = theirs.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    made = model.generate(inputs, max_new_tokens=20, do_sample=False)[0, inputs.shape[1] :]
    assert theirs.decode(made, skip_special_tokens=True) == answer.text

    files = export_model(run.path, "gguf", tmp_path / "gguf", console=QUIET)
    assert [report.equal_token_ids for report in files.parity_reports] == [True]
    for number, source in enumerate((exported.path, files.files[0])):
        again = load(import_model(source, tmp_path / f"again{number}", console=QUIET), console=QUIET)
        assert again.tokenizer.end_ids == {2} and again.tokenizer.prefix_ids == [1]
        assert again.chat(asked, temperature=0.0).text == answer.text


def test_later_pieces_of_a_document_have_no_prefix_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long document is encoded in pieces, and only the first starts a text."""
    monkeypatch.setattr(decoding, "PIECE_CHARACTERS", 100)
    monkeypatch.setattr(decoding, "BLOCK_BYTES", 100)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content()))
    documents = [f"{number} {' '.join(CORPUS)}" for number in range(12)]
    (tmp_path / "texts").mkdir()
    for number, text in enumerate(documents):
        (tmp_path / "texts" / f"{number}.txt").write_text(text)
    data = DataConfig(source=(str(tmp_path / "texts"),), split=Split.documents, validation_fraction=0.3)
    assert len([*open_corpus(data).pieces()]) >= 2 * len(documents)
    config = TokenizerConfig(path=str(tmp_path / "tokenizer.json"))
    prepared = prepare(open_corpus(data), data, config, tmp_path / "data", QUIET)
    sides = ((prepared.train, prepared.manifest.train), (prepared.validation, prepared.manifest.validation))
    texts = [prepared.tokenizer.decode(tokens.read(0, len(tokens)).tolist()) for tokens, _ in sides]
    assert sorted(text for side in texts for text in side.split("</s>")) == sorted(documents)
    for tokens, manifest in sides:
        token_ids = np.array([2, *tokens.read(0, len(tokens))])
        sizes = prepared.tokenizer.sizes_after(token_ids).sum(axis=0).tolist()
        assert sizes == [manifest.bytes, manifest.characters]
        assert prepared.tokenizer.sizes_of_counts(tokens.counts).tolist() == sizes


# llama.cpp's algorithm


def sentencepiece_ids(text: str, space: bool = True) -> list[int]:
    """Return llama.cpp's token ids for the test tokenizer: the adjacent pair with the highest score is merged first."""
    ranks = scores()
    if text and space:
        text = " " + text
    symbols = list(text.replace(" ", "▁"))
    while True:
        pairs = [(ranks.get(a + b, -math.inf), -i) for i, (a, b) in enumerate(pairwise(symbols))]
        best = max(pairs, default=(-math.inf, 0))
        if best[0] == -math.inf:
            break
        at = -best[1]
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
    ids = {token: token_id for token_id, token in enumerate(entries())}
    return [
        token_id
        for symbol in symbols
        for token_id in ([ids[symbol]] if symbol in ranks else [3 + byte for byte in symbol.encode()])
    ]


@pytest.fixture(scope="module")
def metadata() -> dict[str, Any]:
    """The metadata of the tokenizer as written by llama.cpp's converter."""
    kinds = [gguf.TokenType.UNKNOWN, *[gguf.TokenType.CONTROL] * 2, *[gguf.TokenType.BYTE] * 256]
    names = list(entries())
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": names,
        "tokenizer.ggml.scores": [scores().get(name, -1000.0) for name in names],
        "tokenizer.ggml.token_type": [int(k) for k in kinds]
        + [int(gguf.TokenType.NORMAL)] * (len(names) - 259),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


WORDS = st.sampled_from(
    [*" ".join(CORPUS).split(), "  ", "    ", "\n", "é", "🙂", "thethe", "aaa", "▁", "</s>"]
)
LINES = st.lists(WORDS, max_size=12).flatmap(lambda words: st.sampled_from([" ".join(words), "".join(words)]))


@settings(max_examples=150, deadline=None)
@given(text=LINES)
def test_gguf_tokenizer_gives_the_ids_of_llama_cpp(metadata: dict[str, Any], text: str) -> None:
    tokenizer = read_tokenizer(metadata, Path("model.gguf"))
    assert tokenizer.encode(text) == sentencepiece_ids(text)
    assert (
        tokenizer.prefix_ids == [1] and tokenizer.end_of_text_id == 2 and tokenizer.special_ids == {0, 1, 2}
    )
    bare = read_tokenizer({**metadata, "tokenizer.ggml.add_space_prefix": False}, Path("model.gguf"))
    assert bare.encode(text) == sentencepiece_ids(text, space=False)
    without = read_tokenizer({**metadata, "tokenizer.ggml.add_bos_token": False}, Path("model.gguf"))
    assert without.prefix_ids == []


def test_damaged_gguf_tokenizer_is_reported(metadata: dict[str, Any]) -> None:
    for change in ({"tokenizer.ggml.scores": [0.0]}, {"tokenizer.ggml.unknown_token_id": 10**6}):
        with pytest.raises(TokenizerError, match=r"model\.gguf: its tokenizer cannot be read"):
            read_tokenizer({**metadata, **change}, Path("model.gguf"))


@pytest.mark.parametrize("variant", ["prepend", "replace", "never"])
def test_gguf_export_round_trips(variant: str, tmp_path: Path, metadata: dict[str, Any]) -> None:
    lm = imported(folder_of(tmp_path / "theirs", variant))
    made = export_model(tmp_path / "ours", "gguf", tmp_path / "gguf", console=QUIET)
    assert [report.holds for report in made.parity_reports] == [True]
    written = GgufFile(made.files[0]).metadata
    assert written["tokenizer.ggml.add_space_prefix"] == (variant == "prepend")
    for name in ("model", "pre", "tokens", "token_type", "bos_token_id", "eos_token_id", "unknown_token_id"):
        assert written[f"tokenizer.ggml.{name}"] == metadata[f"tokenizer.ggml.{name}"], name
    back = load(import_model(made.files[0], tmp_path / "back", console=QUIET), console=QUIET)
    assert json.loads(back.tokenizer.to_json())["model"]["merges"] == content()["model"]["merges"]
    for text in (*CORPUS, " x", "é\n      a"):
        assert back.tokenizer.encode(text) == lm.tokenizer.encode(text)
    prompt: dict[str, Any] = {"max_tokens": 12, "temperature": 0.0, "console": QUIET}
    assert back.generate_all(["The"], **prompt)[0].text == lm.generate_all(["The"], **prompt)[0].text

    # The tokenizer of a file written by another program, with the defaults of llama.cpp.
    def change(content_: dict[str, Any]) -> None:
        for name in ("bos_token_id", "add_bos_token", "unknown_token_id"):
            content_.pop(f"tokenizer.ggml.{name}", None)

    copied(made.files[0], tmp_path / "bare.gguf", change)
    again = load(import_model(tmp_path / "bare.gguf", tmp_path / "bare", console=QUIET), console=QUIET)
    assert again.tokenizer.prefix_ids == [1] and not load_metadata(tmp_path / "bare").end_token_ids
    assert again.tokenizer.end_ids == {2}


@cache
def older() -> tuple[Tokenizer, Tokenizer]:
    """Return a tokenizer with merges in the order of older converters, and the tokenizer read from its metadata."""
    made = content()
    order = {token: i for i, token in enumerate(sorted(scores(), key=lambda token: -scores()[token]))}
    ids = {token: i for i, token in enumerate(entries())}
    made["model"]["merges"].sort(key=lambda pair: (order["".join(pair)], *(ids[part] for part in pair)))
    tokenizer = Tokenizer(Library.from_str(json.dumps(made)))
    return tokenizer, read_tokenizer(metadata_of(tokenizer), Path("model.gguf"))


@settings(max_examples=100, deadline=None)
@given(text=LINES)
def test_merges_in_the_order_of_older_converters(text: str) -> None:
    """They ordered the merges of one entry by the ids of its parts, and did not mix merges of equal score."""
    tokenizer, back = older()
    assert back.encode(text) == tokenizer.encode(text) == sentencepiece_ids(text)


class RecordedMetadata(dict[str, Any]):
    """Records the calls of a ``GGUFWriter`` with their values."""

    def __getattr__(self, name: str) -> Any:
        return lambda value: self.update({name: value})


def metadata_of(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the metadata written for a tokenizer, in the form in which they are read."""
    written = RecordedMetadata()
    add_tokenizer(written, tokenizer)  # pyright: ignore[reportArgumentType]
    names = {
        "model": "tokenizer_model",
        "tokens": "token_list",
        "scores": "token_scores",
        "token_type": "token_types",
    }
    return {f"tokenizer.ggml.{name}": written[f"add_{call}"] for name, call in names.items()}


def test_tokenizers_that_llama_cpp_encodes_differently_are_rejected(tmp_path: Path, fails: Fails) -> None:
    folder_of(tmp_path / "theirs", "first")
    imported(tmp_path / "theirs")
    message = fails("export", tmp_path / "ours", "--to", "gguf", "--out", tmp_path / "gguf")
    assert (
        "puts a space before each part of a text between special tokens" in message and "'first'" in message
    )
    made = content()
    made["model"]["merges"] = [pair for pair in made["model"]["merges"] if "".join(pair) != "▁the"]
    (tmp_path / "theirs" / "tokenizer.json").write_text(json.dumps(made))
    import_model(tmp_path / "theirs", tmp_path / "other", console=QUIET)
    message = fails("export", tmp_path / "other", "--to", "gguf", "--out", tmp_path / "gguf")
    assert "this tokenizer has other merges" in message and not (tmp_path / "gguf").exists()
