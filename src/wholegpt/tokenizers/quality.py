"""Whether a tokenizer is fit for a text: what it loses, what it does not know, and what of it is never used."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from wholegpt.errors import TokenizerError
from wholegpt.tokenizers.published import UNKNOWN
from wholegpt.tokenizers.tokenizer import Tokenizer

MOST_UNKNOWN = 0.01
"""Share of a text's tokens that may stand for what the vocabulary lacks."""


@dataclass(frozen=True)
class Quality:
    """A tokenizer on a sample of text."""

    texts: int
    changed_texts: int
    """Those that do not come back as they were, where the tokenizer keeps text."""
    unknown_share: float
    """Of the tokens, those that stand for symbols the vocabulary lacks."""
    bytes_per_token: float
    unused_share: float
    """Of the entries, those that no text of the sample has."""

    def check(self) -> None:
        """Raise ``TokenizerError``, with the figure, for a tokenizer that would spoil a model."""
        if self.changed_texts:
            raise TokenizerError(
                f"{self.changed_texts} of {self.texts} texts do not come back from this tokenizer as they were"
            )
        if self.unknown_share > MOST_UNKNOWN:
            raise TokenizerError(
                f"{self.unknown_share:.1%} of the tokens stand for symbols that the vocabulary lacks; at most "
                f"{MOST_UNKNOWN:.0%} is of use; train on text like this, or with --tokenizer.kind bpe, which knows "
                "every symbol"
            )


def quality(tokenizer: Tokenizer, texts: Iterable[str]) -> Quality:
    """Measure ``tokenizer`` on ``texts``; those that it cannot encode at all raise ``TokenizerError``."""
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
