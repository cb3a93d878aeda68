"""Tokenizers in the metadata of GGUF files, written for llama.cpp and read as it reads them.

Supported are byte-level BPE with one of ``SPLITS`` and BPE of SentencePiece's form (``gguf_sentencepiece``); for
export also ASCII character tokenizers.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wholegpt.errors import TokenizerError
from wholegpt.interop import gguf_sentencepiece
from wholegpt.interop.huggingface import ends_of_answers, special_ids
from wholegpt.tokenizers import Tokenizer, byte_level_alphabet
from wholegpt.tokenizers.published import LLAMA3_SPLIT, QWEN2_SPLIT

if TYPE_CHECKING:
    from gguf import GGUFWriter


def _byte_level(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _split(regex: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


SPLITS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [_byte_level(use_regex=True)],
    "smollm": [{"type": "Digits", "individual_digits": True}, _byte_level(use_regex=True)],
    "qwen2": [_split(QWEN2_SPLIT), _byte_level(use_regex=False)],
    "llama-bpe": [_split(LLAMA3_SPLIT), _byte_level(use_regex=False)],
}
"""llama.cpp's names of the ways in which a text is split into words, and the steps in ``tokenizer.json``."""
WHOLE_WORDS = ("llama-bpe",)
"""Those for which llama.cpp takes a word that is a token without applying merges (``ignore_merges``)."""
NO_MERGE = "<|none|> <|none|>"
"""llama.cpp requires a non-empty list of merges; these two entries occur in no text."""


def add_tokenizer(writer: "GGUFWriter", tokenizer: Tokenizer) -> None:
    """Write entries and merges. Raises ``TokenizerError`` for a tokenizer for which llama.cpp would give
    other ids.
    """
    content = json.loads(tokenizer.to_json())
    _refuse_added_tokens(content)
    added = {token["id"]: token for token in content["added_tokens"]}
    types = [_type_of(token_id, added.get(token_id), tokenizer) for token_id in range(tokenizer.vocab_size)]
    if tokenizer.sentencepiece:
        gguf_sentencepiece.add_sentencepiece(writer, content, tokenizer, tokenizer.sentencepiece, types)
        return
    _refuse_what_llama_cpp_lacks(content)
    entries = _byte_level_entries(content)
    tokens = [
        added[token_id]["content"] if token_id in added else entries[token_id]
        for token_id in range(tokenizer.vocab_size)
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_splitting(content))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(_merges(content) or [NO_MERGE])


def _type_of(token_id: int, added: dict[str, Any] | None, tokenizer: Tokenizer) -> int:
    """Return llama.cpp's type of an entry; ``added`` is its added token, if any."""
    from gguf import TokenType

    if token_id in tokenizer.unused_ids:
        return TokenType.UNUSED
    if not added:
        return TokenType.NORMAL
    return TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED


def add_ends(writer: "GGUFWriter", tokenizer: Tokenizer, chat_template: str) -> None:
    """Write the tokens that start and end texts, as in the export to Hugging Face."""
    ids, ends = special_ids(tokenizer), ends_of_answers(tokenizer, chat_template)
    if not ends:
        raise TokenizerError(
            "the tokenizer has no end-of-text token, and llama.cpp would use an ordinary one instead; "
            "export to huggingface instead"
        )
    writer.add_add_bos_token(bool(tokenizer.prefix_ids))
    writer.add_bos_token_id(ids.get("bos_token_id", ends[0]))
    writer.add_eos_token_id(ends[0])
    if chat_template or len(ends) > 1:
        writer.add_eot_token_id(ends[0] if chat_template else ends[1])
    if "pad_token_id" in ids:
        writer.add_pad_token_id(ids["pad_token_id"])


def _refuse_what_llama_cpp_lacks(content: dict[str, Any]) -> None:
    """Raise ``TokenizerError`` for parts of a ``tokenizer.json`` that llama.cpp does not support."""
    normalizer, model = content["normalizer"], content["model"]
    if normalizer:
        steps = [one["type"] for one in normalizer.get("normalizers", [normalizer])]
        raise TokenizerError(
            f"llama.cpp does not normalize text before encoding, but this tokenizer does "
            f"({', '.join(steps)}): it would give other ids for some texts. Export to huggingface instead"
        )
    settings = ("byte_fallback", "continuing_subword_prefix", "dropout", "end_of_word_suffix")
    if used := [name for name in settings if model.get(name)]:
        raise TokenizerError(
            f"llama.cpp cannot reproduce this tokenizer: its {' and '.join(used)} would be lost. Export to huggingface "
            "instead"
        )


def _refuse_added_tokens(content: dict[str, Any]) -> None:
    """Raise ``TokenizerError`` for added tokens that llama.cpp would find elsewhere in a text."""
    for token in content["added_tokens"]:
        if used := [flag for flag in ("lstrip", "rstrip", "single_word") if token[flag]]:
            raise TokenizerError(
                f"llama.cpp cannot reproduce this tokenizer: its token {token['content']!r} is {' and '.join(used)}. "
                "Export to huggingface instead"
            )
    names = [token["content"] for token in content["added_tokens"]]
    if pair := next(((a, b) for a in names for b in names if _overlap(a, b)), None):
        raise TokenizerError(
            f"llama.cpp cannot reproduce this tokenizer: its tokens {pair[0]!r} and {pair[1]!r} can overlap in a text, "
            "where llama.cpp takes the longest one and not the first. Export to huggingface instead"
        )


def _overlap(left: str, right: str) -> bool:
    """Return whether a longer token can start inside the previous one. Both split repeated characters alike."""
    if len(right) <= len(left) or len({*left, *right}) == 1:
        return False
    return any(right.startswith(left[index:]) for index in range(1, len(left)))


def _byte_level_entries(content: dict[str, Any]) -> dict[int, str]:
    """Return id -> token, in the 256 characters that represent bytes."""
    vocabulary = content["model"]["vocab"]
    if content["model"]["type"] == "BPE" and "ByteLevel" in json.dumps(content["pre_tokenizer"]):
        return {token_id: token for token, token_id in vocabulary.items()}
    # Entries of several characters are special, or no text is encoded to them.
    longer = [token for token in vocabulary if len(token) == 1 and not token.isascii()]
    if content["model"]["type"] != "WordLevel" or longer:
        reason = (
            f"it has characters of several bytes, such as {longer[0]!r}"
            if longer
            else content["model"]["type"]
        )
        raise TokenizerError(
            f"llama.cpp cannot reproduce this tokenizer ({reason}); it supports byte-level BPE and character "
            "tokenizers of ASCII only. Export to huggingface, or train with --tokenizer.kind bpe"
        )
    alphabet = byte_level_alphabet()
    return {
        token_id: alphabet[ord(token)] if len(token) == 1 else token for token, token_id in vocabulary.items()
    }


def _splitting(content: dict[str, Any]) -> str:
    """Return llama.cpp's name for the split of a text into words."""
    first = content["pre_tokenizer"]
    parts = [
        {**part, "trim_offsets": True} if part["type"] == "ByteLevel" else part
        for part in (first["pretokenizers"] if first["type"] == "Sequence" else [first])
    ]
    whole_words = bool(content["model"].get("ignore_merges"))
    spaced = any(part.get("add_prefix_space") for part in parts)
    if not _merges(content) and not spaced and not whole_words:
        return "gpt-2"
    for name, steps in SPLITS.items():
        if parts == steps and whole_words == (name in WHOLE_WORDS):
            return name
    raise TokenizerError(
        "llama.cpp does not support the word split of this tokenizer, only those of GPT-2, SmolLM, Llama 3 and Qwen2. "
        "Export to huggingface instead"
    )


def _merges(content: dict[str, Any]) -> list[str]:
    merges = content["model"].get("merges", [])
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]


def read_tokenizer(metadata: Mapping[str, Any], path: Path) -> Tokenizer:
    """Return the tokenizer that llama.cpp builds from the metadata of the file ``path``.

    Raises ``TokenizerError`` for one that is incomplete, damaged or not supported.
    """
    import tokenizers

    kind, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if kind is None:
        raise TokenizerError(f"{path}: has no tokenizer; name one with --tokenizer")
    sentencepiece = kind == gguf_sentencepiece.MODEL
    if not sentencepiece and (kind != "gpt2" or pre not in SPLITS):
        raise TokenizerError(
            f"{path}: its tokenizer is of the kind {kind!r} with the word split {pre!r}; supported are "
            f"{gguf_sentencepiece.MODEL!r}, and 'gpt2' with {', '.join(map(repr, SPLITS))}. Name the tokenizer.json of "
            "the original model with --tokenizer"
        )
    try:
        tokens = metadata["tokenizer.ggml.tokens"]
        content = (
            gguf_sentencepiece.content_of(metadata) if sentencepiece else _content_of(str(pre), metadata)
        )
        if metadata.get("tokenizer.ggml.add_bos_token", sentencepiece or pre in WHOLE_WORDS):
            default = {"tokenizer.ggml.bos_token_id": gguf_sentencepiece.START_ID} if sentencepiece else {}
            content["post_processor"] = _prefix(
                tokens, {**default, **metadata}["tokenizer.ggml.bos_token_id"]
            )
        library = tokenizers.Tokenizer.from_str(json.dumps(content))
    except Exception as error:  # a damaged file may raise anything
        raise TokenizerError(
            f"{path}: its tokenizer cannot be read: {type(error).__name__}: {error}"
        ) from None
    return Tokenizer(library)


def _content_of(pre: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of the ``tokenizer.json`` of byte-level BPE."""
    from gguf import TokenType

    tokens, types, merges = (
        metadata[f"tokenizer.ggml.{name}"] for name in ("tokens", "token_type", "merges")
    )
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [
        {"id": token_id, "content": token, **flags, "special": kind != TokenType.USER_DEFINED}
        for token_id, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind != TokenType.NORMAL
    ]
    steps = SPLITS[pre]
    return {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps},
        "post_processor": None,
        "decoder": _byte_level(use_regex=True),
        "model": {
            "type": "BPE",
            "vocab": {token: token_id for token_id, token in enumerate(tokens)},
            "merges": [merge for merge in merges if merge != NO_MERGE],
            "ignore_merges": pre in WHOLE_WORDS,
        },
    }


def _prefix(tokens: list[str], token_id: int) -> dict[str, Any]:
    """Return the post-processor that puts a token before each text."""
    name = tokens[token_id]
    first, text = {"SpecialToken": {"id": name, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [first, text],
        "pair": [first, text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {name: {"id": name, "ids": [token_id], "tokens": [name]}},
    }


def ends_in(metadata: Mapping[str, Any], vocab_size: int) -> tuple[int, ...]:
    """Return the tokens at which llama.cpp ends generation, as far as the metadata name them."""
    ids = (metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom"))
    return tuple(dict.fromkeys(int(one) for one in ids if isinstance(one, int) and 0 <= one < vocab_size))
