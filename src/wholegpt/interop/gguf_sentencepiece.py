"""Tokenizers of SentencePiece's form in GGUF files, where llama.cpp calls them ``llama``.

llama.cpp repeatedly joins the two neighbors whose joint entry has the highest score; of equal ones the first two. BPE
gives the same ids with a merge for each pair of entries that join to an entry, in the order of the scores of these
entries. Where scores are equal, as for Llama 2's runs of spaces, the pair with the longer left side comes first, which
also joins from the left. As in the converters of ``transformers``, such an order is an approximation where pairs of
equal score overlap, as in ``a``, ``aa``, ``a`` if there is an entry ``aaa``.
"""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from wholegpt.errors import TokenizerError
from wholegpt.tokenizers import Tokenizer
from wholegpt.tokenizers.sentencepiece import BYTE_ENTRIES, SentencePiece, SpaceBefore

if TYPE_CHECKING:
    from gguf import GGUFWriter

MODEL = "llama"
"""llama.cpp's name of such tokenizers."""
UNKNOWN_ID, START_ID = 0, 1
"""llama.cpp's defaults for the entry of unknown characters and for the token before a text."""


def content_of(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of the ``tokenizer.json`` for the metadata of a file."""
    from gguf import TokenType

    tokens, scores, types = (
        metadata[f"tokenizer.ggml.{name}"] for name in ("tokens", "scores", "token_type")
    )
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [
        {"id": token_id, "content": token, **flags, "special": kind != TokenType.USER_DEFINED}
        for token_id, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind not in (TokenType.NORMAL, TokenType.BYTE)
    ]
    scored = {
        token: score
        for token, score, kind in zip(tokens, scores, types, strict=True)
        if kind == TokenType.NORMAL
    }
    space = metadata.get("tokenizer.ggml.add_space_prefix", True)
    variant = SentencePiece(SpaceBefore.always if space else SpaceBefore.none, metaspace=False)
    return {
        "version": "1.0",
        "added_tokens": added,
        "post_processor": None,
        **variant.parts(),
        "model": {
            "type": "BPE",
            "unk_token": tokens[metadata.get("tokenizer.ggml.unknown_token_id", UNKNOWN_ID)],
            "byte_fallback": True,
            "fuse_unk": True,
            "vocab": {token: token_id for token_id, token in enumerate(tokens)},
            "merges": merges_of(scored),
        },
    }


def merges_of(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return each pair of entries that join to an entry, the highest score of that entry first, then the longest left
    side.
    """
    pairs = [
        (token[:index], token[index:])
        for token in scores
        for index in range(1, len(token))
        if token[:index] in scores and token[index:] in scores
    ]
    return sorted(pairs, key=lambda pair: (-scores["".join(pair)], -len(pair[0]), -len(pair[1])))


def add_sentencepiece(
    writer: "GGUFWriter",
    content: dict[str, Any],
    tokenizer: Tokenizer,
    variant: SentencePiece,
    types: Sequence[int],
) -> None:
    """Write entries, their scores and types. ``types`` are those of added tokens; ordinary for all others.

    Raises ``TokenizerError`` if llama.cpp would give other ids.
    """
    from gguf import TokenType

    if variant.metaspace and variant.space is not SpaceBefore.none:
        raise TokenizerError(
            "llama.cpp puts a space before each part of a text between special tokens, whatever it begins with; this "
            f"tokenizer (Metaspace with prepend_scheme {str(variant.space)!r}) would get other ids for some texts. "
            "Export to huggingface instead"
        )
    added = {token["id"]: token for token in content["added_tokens"]}
    names = [tokenizer.name_of(token_id) for token_id in range(tokenizer.vocab_size)]
    ordinary = [
        name for token_id, name in enumerate(names) if token_id not in added and name not in BYTE_ENTRIES
    ]
    scores = _scores(content["model"], ordinary)
    unknown = content["model"].get("unk_token")
    kinds = dict.fromkeys(BYTE_ENTRIES, TokenType.BYTE) | ({unknown: TokenType.UNKNOWN} if unknown else {})
    writer.add_tokenizer_model(MODEL)
    writer.add_tokenizer_pre("default")
    writer.add_token_list(names)
    writer.add_token_scores([scores.get(name, 0.0) for name in names])
    writer.add_token_types([kinds.get(name, kind) for name, kind in zip(names, types, strict=True)])
    if unknown:
        writer.add_unk_token_id(names.index(unknown))
    writer.add_add_space_prefix(variant.space is SpaceBefore.always)


def _scores(model: dict[str, Any], ordinary: Sequence[str]) -> dict[str, float]:
    """Return the scores for which llama.cpp merges as the ``model`` does."""
    merges: list[tuple[str, str]] = []
    for merge in model["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        merges.append((left, right))
    blocks = _blocks(merges)
    scores = {"".join(pair): -float(rank) for rank, block in enumerate(blocks) for pair in block}
    others = (name for name in ordinary if name not in scores)
    scores |= {name: -float(rank) for rank, name in enumerate(others, len(blocks))}
    expected = iter(merges_of({name: scores[name] for name in ordinary}))
    equal = all(_equal(block, [*islice(expected, len(block))]) for block in blocks) and not [*expected]
    if not equal or model.get("ignore_merges") or model.get("dropout"):
        raise TokenizerError(
            "llama.cpp cannot reproduce this tokenizer: it merges any two entries that join to an entry, in the order "
            "of one score for each entry, and this tokenizer has other merges. Export to huggingface instead"
        )
    return scores


def _blocks(merges: Sequence[tuple[str, str]]) -> list[list[tuple[str, str]]]:
    """Split merges into blocks with one score: all merges that join to the same entry, and those between them."""
    last = {"".join(pair): rank for rank, pair in enumerate(merges)}
    blocks: list[list[tuple[str, str]]] = []
    end = -1
    for rank, pair in enumerate(merges):
        if rank > end:
            blocks.append([])
        blocks[-1].append(pair)
        end = max(end, last["".join(pair)])
    return blocks


def _equal(block: list[tuple[str, str]], expected: list[tuple[str, str]]) -> bool:
    """Return whether a block has the expected merges; their order matters if they join to different entries."""
    one_entry = len({"".join(pair) for pair in block}) == 1
    return sorted(block) == sorted(expected) if one_entry else block == expected
