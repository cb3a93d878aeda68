"""Masking of tokens for masked language modeling (Devlin et al. 2018, section 3.1).

Shapes: B sequences, T positions.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from wholegpt.data.text.loader import Batch, WindowLoader
from wholegpt.errors import TokenizerError
from wholegpt.losses import IGNORED
from wholegpt.runtime import mix_seed
from wholegpt.tokenizers import MASK, Tokenizer

SHARE, MASKED, RANDOM = 0.15, 0.8, 0.1
"""Share of tokens to predict, and of these the shares that are masked and replaced at random; the rest is
unchanged.
"""


def mask_tokens(
    token_ids: Int[Tensor, "B T"], tokenizer: Tokenizer, seed: int
) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
    """Return inputs with masked tokens, and targets: the original token at masked positions, ``IGNORED``
    elsewhere.

    Special tokens are neither masked nor drawn as replacements. At least one token is masked.
    """
    generator = np.random.default_rng(seed)
    shape = tuple(token_ids.shape)
    ordinary = np.setdiff1d(np.arange(tokenizer.vocab_size), sorted(tokenizer.special_ids))
    maskable = np.isin(token_ids.numpy(), ordinary)
    drawn = np.where(maskable, generator.random(shape), 2.0)
    chosen = drawn <= max(SHARE, float(drawn.min()))
    fate = generator.random(shape)
    seen = token_ids.clone()
    mask_id = tokenizer.id_of(MASK)
    if mask_id is None:
        raise TokenizerError(f"the tokenizer has no {MASK} token, which masked language modeling needs")
    seen[torch.from_numpy(chosen & (fate < MASKED))] = mask_id
    replaced = torch.from_numpy(chosen & (fate >= MASKED) & (fate < MASKED + RANDOM))
    others = torch.from_numpy(generator.choice(ordinary, shape))
    seen = torch.where(replaced, others, seen)
    return seen, token_ids.masked_fill(~torch.from_numpy(chosen), IGNORED)


@dataclass(frozen=True)
class MaskedLoader:
    """The windows of another loader with some tokens masked, as a function of (seed, step)."""

    windows: WindowLoader
    tokenizer: Tokenizer
    seed: int

    def batch(self, step: int) -> Batch:
        """Return the windows of optimizer step ``step`` (from 0)."""
        plain = self.windows.batch(step)
        seen, targets = mask_tokens(plain.token_ids, self.tokenizer, mix_seed(self.seed, step, 4))
        return Batch(seen, targets, plain.documents)
