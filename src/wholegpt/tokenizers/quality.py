"""Quality of a tokenizer on a text: losses, unknown symbols and unused entries."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from wholegpt.errors import TokenizerError
from wholegpt.tokenizers.published import UNKNOWN
from wholegpt.tokenizers.tokenizer import Tokenizer

MOST_UNKNOWN = 0.01
"""Largest share of a text's tokens that may be unknown."""


@dataclass(frozen=True)
class Quality:
    """Quality of a tokenizer on a sample of text."""

    texts: int
    changed_texts: int
    """Texts that do not decode to themselves, for lossless tokenizers."""
    unknown_share: float
    """Share of tokens that represent symbols missing in the vocabulary."""
    bytes_per_token: float
    unused_share: float
    """Share of entries that do not occur in the sample."""

    def check(self) -> None:
        """Raise ``TokenizerError``, with the value, for a tokenizer that would spoil a model."""
        if self.changed_texts:
            raise TokenizerError(
                f"{self.changed_texts} of {self.texts} texts are changed by encoding and decoding"
            )
        if self.unknown_share > MOST_UNKNOWN:
            raise TokenizerError(
                f"{self.unknown_share:.1%} of the tokens are unknown symbols; at most "
                f"{MOST_UNKNOWN:.0%} is acceptable; train on similar text, or with --tokenizer.kind bpe, which encodes "
                "every symbol"
            )


def quality(tokenizer: Tokenizer, texts: Iterable[str]) -> Quality:
    """Measure ``tokenizer`` on ``texts``. Raises ``TokenizerError`` for a text that it cannot encode."""
    counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    n_texts = changed = n_bytes = 0
    unknown = tokenizer.id_of(UNKNOWN)
    for text in texts:
        token_ids = tokenizer.encode(text)
        counts += np.bincount(token_ids, minlength=len(counts))
        n_texts += 1
        n_bytes += len(text.encode())
        changed += tokenizer.keeps_text and tokenizer.decode(token_ids) != text
    tokens = max(int(counts.sum()), 1)
    return Quality(
        texts=n_texts,
        changed_texts=changed,
        unknown_share=0.0 if unknown is None else int(counts[unknown]) / tokens,
        bytes_per_token=n_bytes / tokens,
        unused_share=float((counts == 0).mean()),
    )
