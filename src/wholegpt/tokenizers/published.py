"""Published tokenizers: GPT-1, GPT-2, Qwen2 and Qwen3, and those of SentencePiece."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Library

from wholegpt.errors import TokenizerError
from wholegpt.tokenizers.sentencepiece import SentencePiece, SpaceBefore, sentencepiece_of, with_variant
from wholegpt.tokenizers.tokenizer import END_OF_TEXT, Tokenizer

GPT2_FILES, TRANSFORMERS_FILES = ("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")
UNKNOWN, WORD_END = "<unk>", "</w>"
"""GPT-1's entry for unknown symbols, and its suffix for the last symbol of a word."""


def _split_with(digits: str) -> str:
    return "|".join(
        (
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
            r"[^\r\n\p{L}\p{N}]?\p{L}+",
            digits,
            r" ?[^\s\p{L}\p{N}]+[\r\n]*",
            r"\s*[\r\n]+",
            r"\s+(?!\S)",
            r"\s+",
        )
    )


QWEN2_SPLIT = _split_with(r"\p{N}")
"""The split of a text into words in the published Qwen2 and Qwen3 tokenizers: each digit is a word."""
LLAMA3_SPLIT = _split_with(r"\p{N}{1,3}")
"""The same in Llama 3: up to three digits are a word."""


def splits_as_qwen2(tokenizer: Tokenizer) -> bool:
    """Return whether a tokenizer splits a text into words as Qwen2's does."""
    return json.dumps({"Regex": QWEN2_SPLIT}) in json.dumps(json.loads(tokenizer.to_json())["pre_tokenizer"])


TOKENIZER_FILES = ("tokenizer.json", GPT2_FILES[0], TRANSFORMERS_FILES[0])
"""A folder with a tokenizer contains one of these files."""


def gpt2_tokenizer(folder: str | Path, cut_as_qwen2: bool = False) -> Tokenizer:
    """Load GPT-2's tokenizer from its two published files, ``encoder.json`` and ``vocab.bpe``: 50,257
    entries.

    ``vocab.json`` and ``merges.txt`` are the names that ``transformers`` gives them. GPT-1's files have these
    names too and are recognized by their marked word ends. Qwen2's and Qwen3's files look like GPT-2's;
    ``cut_as_qwen2`` says which they are. Raises ``TokenizerError`` if a file is missing or invalid.
    """
    folder = Path(folder)
    names = TRANSFORMERS_FILES if (folder / TRANSFORMERS_FILES[0]).exists() else GPT2_FILES
    encoder_path, merges_path = (folder / name for name in names)
    try:
        vocabulary = json.loads(encoder_path.read_text(encoding="utf-8"))
        lines = merges_path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError, RecursionError) as error:
        raise TokenizerError(f"{folder}: expected {' and '.join(names)}: {error}") from None
    pairs = (line.partition(" ") for line in lines if line and not line.startswith("#version"))
    merges = [(left, right) for left, _, right in pairs]
    try:
        if UNKNOWN in vocabulary and any(token.endswith(WORD_END) for token in vocabulary):
            model = models.BPE(
                vocab=vocabulary, merges=merges, unk_token=UNKNOWN, end_of_word_suffix=WORD_END
            )
            return with_added_tokens(Tokenizer(gpt1_library(model)), folder)
        library = Library(models.BPE(vocab=vocabulary, merges=merges))
    except Exception as error:  # the library raises nothing more specific
        raise TokenizerError(f"{folder}: {' and '.join(names)} do not fit together: {error}") from None
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    if cut_as_qwen2:
        library.normalizer = normalizers.NFC()
        library.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    if END_OF_TEXT in vocabulary:
        library.add_special_tokens([END_OF_TEXT])
    return with_added_tokens(Tokenizer(library), folder)


def with_added_tokens(tokenizer: Tokenizer, folder: Path) -> Tokenizer:
    """Return ``tokenizer`` with the tokens that ``transformers`` adds to it.

    They are in ``added_tokens_decoder`` of ``tokenizer_config.json`` or, for older versions, in
    ``added_tokens.json``. Tokens that the first file names as ``bos_token``, ``eos_token`` and so on are
    special. Raises ``TokenizerError`` if a given id is not the one that the token has or gets.
    """
    config = _object(folder / "tokenizer_config.json")
    library = Library.from_str(tokenizer.to_json())
    if config.get("add_prefix_space") and sentencepiece_of(library) is None:
        raise TokenizerError(
            f"{folder / 'tokenizer_config.json'}: add_prefix_space is true; the space before each text would not be "
            "removed again, so such tokenizers are not supported"
        )
    named = {**_object(folder / "special_tokens_map.json"), **config}
    special = [_content(value) for name, value in named.items() if name.endswith("_token")]
    special += [_content(value) for value in named.get("additional_special_tokens") or []]
    added: dict[int, AddedToken] = {}
    for token_id, token in (config.get("added_tokens_decoder") or {}).items():
        flags = {name: bool(token[name]) for name in _FLAGS if name in token}
        added[int(token_id)] = AddedToken(_content(token), **flags)
    if not added:
        for content, token_id in _object(folder / "added_tokens.json").items():
            added[int(token_id)] = AddedToken(
                content, normalized=content not in special, special=content in special
            )
    known = {token.content for token in library.get_added_tokens_decoder().values()}
    entries = library.get_vocab()
    for content in special:
        if (
            content in entries
            and content not in known
            and content not in {one.content for one in added.values()}
        ):
            added[entries[content]] = AddedToken(content, special=True, normalized=False)
    new = {token_id: token for token_id, token in sorted(added.items()) if token.content not in known}
    if not new:
        return tokenizer
    for token_id, token in new.items():
        library.add_tokens([token])
        if library.token_to_id(token.content) != token_id:
            raise TokenizerError(
                f"{folder}: gives {token.content!r} the id {token_id:,}; it is {library.token_to_id(token.content):,} "
                "in the vocabulary"
            )
    return Tokenizer(library)


_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def _content(token: Any) -> str:
    """Return the text of a token, given as text or as an object."""
    return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")


def _object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; empty if there is no file. Raises ``TokenizerError`` for anything
    else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise TokenizerError(f"{path}: cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise TokenizerError(f"{path}: expected a JSON object")
    return content


def gpt1_library(model: models.BPE) -> Library:
    """Return GPT-1's split of text into words, over a vocabulary of its form."""
    library = Library(model)
    library.normalizer = normalizers.BertNormalizer(lowercase=True)
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.BPEDecoder(suffix=WORD_END)
    return library


def open_tokenizer(path: str | Path, cut_as_qwen2: bool = False) -> Tokenizer:
    """Open a ``tokenizer.json``, or the tokenizer in a folder: of a run, a model, or GPT-2's or Qwen2's
    published files.
    """
    path = Path(path)
    if not path.is_dir():
        return Tokenizer.load(path)
    if (path / "tokenizer.json").exists():
        tokenizer = _as_transformers_rebuilds(Tokenizer.load(path / "tokenizer.json"), path)
        return with_added_tokens(tokenizer, path)
    return gpt2_tokenizer(path, cut_as_qwen2)


def _as_transformers_rebuilds(tokenizer: Tokenizer, folder: Path) -> Tokenizer:
    """Return ``tokenizer`` as ``transformers`` opens it in ``folder``.

    For a Llama model, version 5 of its class ``LlamaTokenizer`` takes only vocabulary and merges from a
    ``tokenizer.json`` of SentencePiece's form. Its settings ``legacy`` and ``add_prefix_space`` determine where a space
    is put.
    """
    config, library = _object(folder / "tokenizer_config.json"), Library.from_str(tokenizer.to_json())
    rebuilds = str(config.get("tokenizer_class")).removesuffix("Fast") == "LlamaTokenizer"
    if not rebuilds or _object(folder / "config.json").get("model_type") != "llama":
        return tokenizer
    if sentencepiece_of(library) is None:
        return tokenizer
    space = SpaceBefore.always if config.get("legacy") else SpaceBefore.first
    if config.get("add_prefix_space") is False:
        space = SpaceBefore.none
    variant = SentencePiece(space, metaspace=True)
    return Tokenizer(Library.from_str(with_variant(tokenizer.to_json(), variant)))
