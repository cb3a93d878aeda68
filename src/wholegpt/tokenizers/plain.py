"""Byte-pair encoding as in E1, trained by counting pairs.

This is the plain twin of ``train_bpe``: on the same text it learns the same merges in the same order.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tokenizers import pre_tokenizers

from wholegpt.tokenizers.training import LONGEST_WORD

Pair = tuple[int, int]


@dataclass(frozen=True)
class Merge:
    """One merge of BPE training."""

    left: str
    right: str
    """Both sides are in the printable characters that represent bytes."""
    count: int
    """How often the pair occurred in the text before the merge."""


def learn_merges(texts: Iterable[str], merges: int) -> Iterator[Merge]:
    """Yield the first ``merges`` of E1: (a, b)* = argmax over adjacent pairs of count(a, b), merged into one
    token.

    Pairs are counted inside words, each as often as its word occurs; ties go to the pair of smaller ids.
    Merging the most frequent pair shortens the corpus most: by count(a, b) tokens.
    """
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    number = {token: i for i, token in enumerate(tokens)}
    words = [([number[c] for c in word], times) for word, times in _words(texts).items()]
    counts: Counter[Pair] = Counter()
    holders: dict[Pair, set[int]] = {}
    for index, (word, times) in enumerate(words):
        for pair in itertools.pairwise(word):
            counts[pair] += times
            holders.setdefault(pair, set()).add(index)
    for _ in range(merges):
        best = max(counts, key=lambda pair: (counts[pair], -pair[0], -pair[1]), default=None)
        if best is None or counts[best] < 1:
            return
        yield Merge(tokens[best[0]], tokens[best[1]], counts[best])
        tokens.append(tokens[best[0]] + tokens[best[1]])
        for index in holders.pop(best):
            word, times = words[index]
            for pair in itertools.pairwise(word):
                counts[pair] -= times
            word[:] = _joined(word, best, len(tokens) - 1)
            for pair in itertools.pairwise(word):
                counts[pair] += times
                holders.setdefault(pair, set()).add(index)
        counts = +counts  # without pairs that no longer occur


def _words(texts: Iterable[str]) -> Counter[str]:
    """Count GPT-2's words, in the characters that represent their bytes.

    Long words are split, as in ``train_bpe``.
    """
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = Counter(word for text in texts for word, _ in split.pre_tokenize_str(text))
    parts: Counter[str] = Counter()
    for word, times in words.items():
        for start in range(0, len(word), LONGEST_WORD):
            parts[word[start : start + LONGEST_WORD]] += times
    return parts


def _joined(word: list[int], pair: Pair, token: int) -> list[int]:
    """Return ``word`` with every ``pair`` replaced by ``token``, from the left."""
    joined: list[int] = []
    for part in word:
        if joined and (joined[-1], part) == pair:
            joined[-1] = token
        else:
            joined.append(part)
    return joined
