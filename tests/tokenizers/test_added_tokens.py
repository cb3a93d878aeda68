"""Foreign tokenizers: added tokens in ordinary text, rejected files, and encoding from several threads."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers as library
import torch

from tests.evaluation.test_perplexity import Uniform
from tests.helpers import text_of
from wholegpt.console import Console
from wholegpt.data import TextSizes, TokenShards
from wholegpt.errors import TokenizerError
from wholegpt.evaluation import evaluate_text
from wholegpt.evaluation.likelihood import Request
from wholegpt.generation.decoding import encode_prompt
from wholegpt.generation.request import GenerationRequest
from wholegpt.language_model import LanguageModel
from wholegpt.settings.choices import Dtype
from wholegpt.settings.schema import GenerationConfig
from wholegpt.tokenizers import END_OF_TEXT, Tokenizer, byte_tokenizer, train_bpe, train_character

BASE = train_bpe([text_of(8000), "naïve café 東京"], 400)
CODE = "def f(x):\n        <think>über x</think>\n        return 'x'\n"
Edit = Callable[[dict[str, Any]], object]


def with_added(*tokens: str, base: Tokenizer = BASE, **flags: bool) -> Tokenizer:
    made = library.Tokenizer.from_str(base.to_json())
    made.add_tokens([library.AddedToken(token, special=False, **flags) for token in tokens])
    return Tokenizer(made)


CODE_TOKENIZER = with_added(" " * 8, "<think>", "</think>", "über")


def reloaded(tokenizer: Tokenizer, folder: Path, edit: Edit = lambda content: None) -> Tokenizer:
    """Return the tokenizer loaded from an edited file."""
    content = json.loads(tokenizer.to_json())
    edit(content)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return Tokenizer.load(folder / "tokenizer.json")


def test_data_and_prompts_are_encoded_alike(tmp_path: Path) -> None:
    tokenizer = reloaded(CODE_TOKENIZER, tmp_path)
    ids = tokenizer.encode(CODE)
    assert {tokenizer.id_of(token) for token in (" " * 8, "<think>", "über")} <= set(ids)
    assert next(tokenizer.encode_all([CODE])).tolist() == ids
    assert tokenizer.decode(ids) == "".join(tokenizer.texts_of(ids)) == CODE


def test_added_tokens_without_the_special_flag_are_text() -> None:
    ids = CODE_TOKENIZER.encode(CODE)
    assert CODE_TOKENIZER.special_ids == {CODE_TOKENIZER.end_of_text_id}
    assert CODE_TOKENIZER.text_sizes[ids].sum(axis=0).tolist() == [len(CODE.encode()), len(CODE)]


def test_special_token_that_is_also_an_ordinary_entry_is_text(tmp_path: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        token = {"id": content["model"]["vocab"]["th"], "content": "th", "special": True}
        others = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        content["added_tokens"].insert(0, {**token, **others})

    tokenizer = reloaded(BASE, tmp_path, edit)
    ids = tokenizer.encode("th oth")
    assert tokenizer.text_sizes[ids].sum(axis=0).tolist() == [6, 6]
    assert tokenizer.special_ids == {tokenizer.end_of_text_id}


def test_character_tokenizer_with_an_added_token_of_other_characters() -> None:
    tokenizer = with_added("<é>", base=train_character(["abc "]))
    ids = tokenizer.encode("a <é>b")
    assert tokenizer.decode(ids) == "a <é>b" and next(tokenizer.encode_all(["a <é>b"])).tolist() == ids
    with pytest.raises(TokenizerError, match=r"character '<' \(U\+003C\) at position 4 is not among the 4"):
        tokenizer.encode("<é>b<")


def test_evaluation_of_a_text_with_added_tokens() -> None:
    tokens = TokenShards([np.array([0, *CODE_TOKENIZER.encode(CODE)])], TextSizes(0, 0))
    model, quiet = Uniform(CODE_TOKENIZER.vocab_size, 16), Console(quiet=True)
    found = evaluate_text(model, tokens, CODE_TOKENIZER, torch.device("cpu"), Dtype.float32, quiet)
    assert (found.bytes, found.characters) == (len(CODE.encode()), len(CODE))
    assert found.words == len(("!" + CODE).split())


def test_streamed_text_with_added_tokens() -> None:
    ids = CODE_TOKENIZER.encode(CODE)
    shown: list[str] = []
    config = GenerationConfig(max_tokens=len(ids), stop=("</think>",))
    request = GenerationRequest([0], config, CODE_TOKENIZER, shown.append)
    for token_id in ids:
        if not request.finish_reason:
            request.accept(token_id)
    assert "".join(shown) == CODE.partition("</think>")[0] and request.finish_reason == "stop"


def test_texts_of_scored_tokens_join_to_the_text() -> None:
    from tests.parity.test_plain import randomized  # a model of 37 tokens

    tokenizer = train_character(["abcé <>"])
    tokenizer = with_added("<é>", base=tokenizer).with_unused(37)
    scores = LanguageModel(randomized("modern"), tokenizer).score("a<é>é b")
    assert scores.tokens == ["a", "<é>", "é", " ", "b"]
    ids = byte_tokenizer().encode("é🙂")
    assert byte_tokenizer().texts_of(ids) == ["", "é", "", "", "", "🙂"]
    assert byte_tokenizer().texts_of(ids[:3]) == ["", "é", "\ufffd"]


def test_continuation_starts_with_its_first_byte() -> None:
    """Alone, the context is split into more tokens than within the whole text."""
    request = Request.of(CODE_TOKENIZER, "a <th", "ink> b")
    whole = CODE_TOKENIZER.encode("a <think> b")
    assert list(request.context_ids + request.continuation_ids) == whole
    assert CODE_TOKENIZER.decode(request.context_ids) == "a "
    assert CODE_TOKENIZER.decode(request.continuation_ids) == "<think> b"


def test_header_and_prompt_are_encoded_as_one_text() -> None:
    tokenizer = train_bpe(["a\n\n\nb\n\n\nc\n\n\nd " * 20], 300)
    model = Uniform(tokenizer.vocab_size, 64)
    ids = encode_prompt(model, tokenizer, "kind: x\n", "\n\nb", False, Console(quiet=True))
    assert ids == [tokenizer.end_of_text_id, *tokenizer.encode("kind: x\n\n\nb")]


def edited(**parts: Any) -> Edit:
    return lambda content: content.update(parts)


def added(token: str, **flags: bool) -> Edit:
    def edit(content: dict[str, Any]) -> None:
        all_flags = {
            **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False),
            **flags,
        }
        token_id = content["model"]["vocab"].get(token, len(content["model"]["vocab"]) + 1)
        content["added_tokens"] = [{"id": token_id, "content": token, **all_flags}, *content["added_tokens"]]

    return edit


def lowercase_with(token: str) -> Edit:
    def edit(content: dict[str, Any]) -> None:
        content["normalizer"] = {"type": "Lowercase"}
        added(token, normalized=True)(content)

    return edit


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (added("<x>", lstrip=True), "'<x>' with lstrip or rstrip, which drops white space beside it"),
        (added("<x>", rstrip=True), "'<x>' with lstrip or rstrip, which drops white space beside it"),
        (lowercase_with("<X>"), "'<X>', which normalized text holds as '<x>'"),
        (added("é"), "'é' under the id of an entry that stands for other bytes"),
        (lambda c: c["model"].update(dropout=0.1), "dropout, which cuts the same text differently each time"),
        (
            lambda c: c["model"]["vocab"].update(far=9000),
            "entries with ids up to 9,000; expected each id",
        ),
        (edited(normalizer={"type": "Prepend", "prepend": "_"}), "changes the beginning or the end of each"),
        (
            edited(normalizer={"type": "Strip", "strip_left": True, "strip_right": True}),
            "changes the beginning or the end of each text",
        ),
        (edited(pre_tokenizer={**BYTE_LEVEL, "add_prefix_space": True}), "puts a space before each text"),
        (
            edited(
                pre_tokenizer={
                    "type": "Sequence",
                    "pretokenizers": [{"type": "CharDelimiterSplit", "delimiter": "x"}, BYTE_LEVEL],
                }
            ),
            "pre-tokenizer CharDelimiterSplit, which does not keep",
        ),
        (
            edited(
                pre_tokenizer={
                    "type": "Sequence",
                    "pretokenizers": [
                        {"type": "Split", "pattern": {"String": "x"}, "behavior": "Removed", "invert": False},
                        BYTE_LEVEL,
                    ],
                }
            ),
            "pre-tokenizer Split that removes what it cuts at",
        ),
        (edited(pre_tokenizer=None), "decodes bytes that it does not encode"),
    ],
)
def test_lossy_tokenizers_are_rejected(edit: Edit, message: str, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=message):
        reloaded(BASE, tmp_path, edit)


def test_files_of_older_versions_of_the_tokenizers_library(tmp_path: Path) -> None:
    """They omit the model type and the word-splitting flag of the byte-level pre-tokenizer."""

    def edit(content: dict[str, Any]) -> None:
        del content["model"]["type"], content["pre_tokenizer"]["use_regex"]

    old = reloaded(BASE, tmp_path, edit)
    assert next(old.encode_all([CODE])).tolist() == old.encode(CODE) == BASE.encode(CODE)


def test_allowing_special_tokens_does_not_affect_other_calls() -> None:
    """Another call allows special tokens between the texts of one call."""
    tokenizer = byte_tokenizer()

    def texts() -> Iterator[str]:
        for _ in range(4):
            assert tokenizer.encode(END_OF_TEXT, allow_special=True) == [tokenizer.end_of_text_id]
            yield END_OF_TEXT + 600_000 * "a"

    for ids in tokenizer.encode_all(texts()):
        assert tokenizer.end_of_text_id not in ids


def test_threads_that_encode_with_and_without_special_tokens() -> None:
    tokenizer = with_added(" " * 8)
    text = f"the{END_OF_TEXT}of " * 50

    def encode(number: int) -> list[int]:
        if number % 3 == 2:
            return next(tokenizer.encode_all([text])).tolist()
        return tokenizer.encode(text, allow_special=number % 3 == 1)

    expected = [encode(number) for number in range(3)]
    assert tokenizer.end_of_text_id in expected[1] and expected[0] == expected[2] != expected[1]
    with ThreadPoolExecutor(4) as pool:
        assert all(ids == expected[n % 3] for n, ids in enumerate(pool.map(encode, range(120))))
