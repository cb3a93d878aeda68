"""Byte-level byte-pair encoding of much text, by tiktoken where it gives the same ids.

tiktoken knows no added tokens that occur in ordinary text, so a vocabulary that has some is left to ``tokenizers``.

The ``tokenizers`` library applies a list of merges; tiktoken joins whatever pair makes the entry of least id. Both are
the same where each entry stands for one merge, in the order of the ids, and is what its own bytes come to just before
it: then no border of a token inside a word depends on what stands beyond it. All of that is checked.
"""

import json
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import tiktoken

GPT2_SPLIT = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
"""How GPT-2 cuts a text into words (Radford et al. 2019), written so that little is tried twice: ``++`` gives nothing
back, white space at the end is taken at once, and what ``\\s+(?!\\S)`` leaves is one character."""
LONGEST_SPACE = 10_000
"""More white space in a row overflows the stack of tiktoken's regular expressions."""

LONGEST_ENTRY = 1000
"""Bytes of an entry that is checked; of one letter repeated without end there are longer ones."""


def fast_encoding(tokenizer_json: str, token_bytes: Sequence[bytes]) -> tiktoken.Encoding | None:
    """tiktoken's encoding of a ``tokenizer.json`` whose entries stand for these bytes; none where ids could differ."""
    content = json.loads(tokenizer_json)
    model, split = content["model"], content["pre_tokenizer"] or {}
    plain = (
        model["type"] == "BPE"
        and content["normalizer"] is None
        and all(token["special"] for token in content["added_tokens"])
        and split.get("type") == "ByteLevel"
        and split["use_regex"]
        and not split["add_prefix_space"]
        and not any(model.get(name) for name in ("dropout", "unk_token", "continuing_subword_prefix"))
        and not any(model.get(name) for name in ("end_of_word_suffix", "ignore_merges"))
        and len(model["merges"]) > 0
    )
    if not plain:
        return None
    added = {token["content"] for token in content["added_tokens"]}
    ids: dict[str, int] = {token: i for token, i in model["vocab"].items() if token not in added}
    ranks = {token_bytes[token_id]: token_id for token_id in ids.values()}
    singles = {token for token in ranks if len(token) == 1}
    if not len(ranks) == len(ids) == 256 + len(model["merges"]) or len(singles) != 256:
        return None
    if max(map(len, ranks)) > LONGEST_ENTRY:
        return None
    latest = max(ranks[token] for token in singles)
    for merge in model["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        token_id = ids[left + right]
        parts = [token_bytes[ids[left]], token_bytes[ids[right]]]
        if token_id <= latest or _merged(token_bytes[token_id], ranks, token_id) != parts:
            return None
        latest = token_id
    # Without any special token tiktoken would look for the empty one at every character.
    special = {"<||>": len(token_bytes)}
    return tiktoken.Encoding("wholegpt", pat_str=GPT2_SPLIT, mergeable_ranks=ranks, special_tokens=special)


def encode_fast(encoding: tiktoken.Encoding, text: str) -> np.ndarray | None:
    """The ids of ``text``; none where it holds more white space in a row than tiktoken can read."""
    # Such a run covers one of these places.
    if any(text[at : at + 64].isspace() for at in range(0, len(text) - 64, LONGEST_SPACE // 2)):
        return None
    return encoding.encode_to_numpy(text, disallowed_special=())


def _merged(word: bytes, ranks: dict[bytes, int], below: int) -> list[bytes]:
    """A word's tokens when every merge into an entry of an id ``below`` this one has been made, least id first."""
    parts = [word[i : i + 1] for i in range(len(word))]
    while len(parts) > 1:
        joined = [ranks.get(a + b, below) for a, b in pairwise(parts)]
        least = min(joined)
        if least >= below:
            break
        at = joined.index(least)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts
