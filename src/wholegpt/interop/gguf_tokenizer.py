"""Tokenizers in the metadata of GGUF files, for llama.cpp.

Supported are byte-level BPE with the word split of GPT-2 or Qwen2, and ASCII character tokenizers.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wholegpt.errors import TokenizerError
from wholegpt.interop.huggingface import ends_of_answers, special_ids
from wholegpt.tokenizers import Tokenizer, byte_level_alphabet
from wholegpt.tokenizers.published import QWEN2_SPLIT

if TYPE_CHECKING:
    from gguf import GGUFWriter

NO_MERGE = "<|none|> <|none|>"
"""llama.cpp requires a non-empty list of merges; these two entries occur in no text."""


def add_tokenizer(writer: "GGUFWriter", tokenizer: Tokenizer) -> None:
    """Write entries and merges. Raises ``TokenizerError`` for a tokenizer for which llama.cpp would give
    other ids.
    """
    content = json.loads(tokenizer.to_json())
    _refuse_what_llama_cpp_lacks(content)
    added = {token["id"]: token for token in content["added_tokens"]}
    entries = _byte_level_entries(content)
    tokens: list[str] = []
    types: list[int] = []
    for token_id in range(tokenizer.vocab_size):
        token = added.get(token_id)
        tokens.append(token["content"] if token else entries[token_id])
        types.append(_type_of(token_id, token, tokenizer))
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
    settings = (
        "byte_fallback",
        "continuing_subword_prefix",
        "dropout",
        "end_of_word_suffix",
        "ignore_merges",
    )
    if used := [name for name in settings if model.get(name)]:
        raise TokenizerError(
            f"llama.cpp cannot reproduce this tokenizer: its {' and '.join(used)} would be lost. Export to huggingface "
            "instead"
        )
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
        {name: value for name, value in part.items() if name != "trim_offsets"}
        for part in (first["pretokenizers"] if first["type"] == "Sequence" else [first])
    ]
    spaced = any(part.get("add_prefix_space") for part in parts)
    if (not _merges(content) and not spaced) or parts == [_byte_level(use_regex=True)]:
        return "gpt-2"
    split = {"type": "Split", "pattern": {"Regex": QWEN2_SPLIT}, "behavior": "Isolated", "invert": False}
    if parts == [split, _byte_level(use_regex=False)]:
        return "qwen2"
    raise TokenizerError(
        "llama.cpp does not support the word split of this tokenizer, only those of GPT-2 and Qwen2. "
        "Export to huggingface instead"
    )


def _byte_level(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "use_regex": use_regex}


def _merges(content: dict[str, Any]) -> list[str]:
    merges = content["model"].get("merges", [])
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]


def read_tokenizer(path: Path) -> Tokenizer:
    """Return the tokenizer that llama.cpp builds from the metadata of a file that ``add_tokenizer`` wrote."""
    import gguf
    import tokenizers

    fields = gguf.GGUFReader(path).fields
    tokens, types, merges, pre = (
        fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "token_type", "merges", "pre")
    )
    vocabulary = {token: token_id for token_id, token in enumerate(tokens)}
    pairs = [tuple(merge.split(" ")) for merge in merges if merge != NO_MERGE]
    library = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=pairs))
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre != "qwen2")
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(QWEN2_SPLIT), "isolated")
    library.pre_tokenizer = (
        tokenizers.pre_tokenizers.Sequence([split, byte_level]) if pre == "qwen2" else byte_level
    )
    library.decoder = tokenizers.decoders.ByteLevel()
    for token, kind in zip(tokens, types, strict=True):
        if kind != gguf.TokenType.NORMAL:
            special = kind != gguf.TokenType.USER_DEFINED
            library.add_tokens([tokenizers.AddedToken(token, special=special, normalized=False)])
    return Tokenizer(library)
