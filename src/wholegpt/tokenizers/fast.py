"""Byte-level BPE of long texts with tiktoken, if it gives the same ids.

tiktoken does not support added tokens that occur in ordinary text, so vocabularies with such tokens use
``tokenizers``.

The ``tokenizers`` library applies a list of merges; tiktoken merges the pair whose entry has the lowest id.
Both give the same result if each entry corresponds to one merge, in the order of the ids, and is what its own
bytes are encoded to by the earlier merges: then no token boundary inside a word depends on the text beyond
it. All of this is checked.
"""

import json
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import tiktoken

GPT2_SPLIT = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
"""GPT-2's split of a text into words (Radford et al. 2019), written with little backtracking.

``++`` is possessive, white space at the end is matched at once, and the rest after ``\\s+(?!\\S)`` is a
single character.
"""
LONGEST_SPACE = 10_000
"""Longer white space overflows the stack of tiktoken's regular expressions."""

LONGEST_ENTRY = 1000
"""Maximum bytes of an entry that is checked; texts that repeat one letter produce longer ones."""


def fast_encoding(tokenizer_json: str, token_bytes: Sequence[bytes]) -> tiktoken.Encoding | None:
    """Return tiktoken's encoding of a ``tokenizer.json`` whose entries have these bytes; ``None`` if ids
    could differ.
    """
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
    # Without a special token, tiktoken would search for the empty one at every character.
    special = {"<||>": len(token_bytes)}
    return tiktoken.Encoding("wholegpt", pat_str=GPT2_SPLIT, mergeable_ranks=ranks, special_tokens=special)


def encode_fast(encoding: tiktoken.Encoding, text: str) -> np.ndarray | None:
    """Return the ids of ``text``; ``None`` if it has more consecutive white space than tiktoken supports."""
    # Such white space covers one of these positions.
    if any(text[at : at + 64].isspace() for at in range(0, len(text) - 64, LONGEST_SPACE // 2)):
        return None
    return encoding.encode_to_numpy(text, disallowed_special=())


def _merged(word: bytes, ranks: dict[bytes, int], below: int) -> list[bytes]:
    """Return a word's tokens after all merges into an entry with an id ``below`` this one, lowest id first."""
    parts = [word[i : i + 1] for i in range(len(word))]
    while len(parts) > 1:
        joined = [ranks.get(a + b, below) for a, b in pairwise(parts)]
        least = min(joined)
        if least >= below:
            break
        at = joined.index(least)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts
