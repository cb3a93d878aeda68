"""The interface of a language model: token ids in, logits out.

Training, generation and evaluation use only these protocols, so an n-gram model or a recurrent network can
replace a transformer.
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor


@runtime_checkable
class Cache(Protocol):
    """State of the tokens that a model has processed, so that it does not process them again."""

    @property
    def lengths(self) -> Int[Tensor, " B"]:
        """Return how many tokens of each sequence are cached; setting a lower value drops the later ones, if
        possible.
        """
        ...

    @property
    def can_rewind(self) -> bool:
        """Return whether a sequence can be cut to any shorter length."""
        ...

    def can_rewind_to(self, row: int, length: int) -> bool:
        """Return whether sequence ``row`` can be cut to its first ``length`` tokens."""
        ...

    @property
    def padded_capacity(self) -> int:
        """Return how many positions of a sequence may be filled with padding, which is cut afterwards; 0: none."""
        ...

    def rows(self, first: int, last: int) -> "Cache":
        """Return sequences ``first`` to ``last`` − 1 as a view of the same memory."""
        ...

    def reorder(self, sources: Sequence[int]) -> None:
        """Replace sequence i by sequence ``sources[i]``, all at once; later sequences stay."""
        ...

    def copy_row(self, source: int, target: int, length: int | None = None) -> None:
        """Copy sequence ``source`` to ``target``, or only its first ``length`` tokens."""
        ...

    def clear(self) -> None:
        """Remove all tokens."""
        ...

    def repeated(self, batch_size: int, capacity: int) -> "Cache":
        """Return a cache for ``batch_size`` copies of this single sequence, of up to ``capacity`` tokens."""
        ...


@runtime_checkable
class CausalLanguageModel(Protocol):
    """A model that predicts each token from the tokens before it. A model accepts only caches that it
    created.
    """

    @property
    def vocab_size(self) -> int:
        """Return V, the number of tokens in the vocabulary."""
        ...

    @property
    def context_length(self) -> int:
        """Return τ, the number of tokens that each token sees, itself included."""
        ...

    @property
    def ends_at_context(self) -> bool:
        """Return whether the model is limited to τ positions, so that a longer text must restart at position
        0.
        """
        ...

    def __call__(self, token_ids: Int[Tensor, "B T"], cache: Any = None) -> Float[Tensor, "B T V"]:
        """Return the logits of the token after each position; with ``cache``, positions continue from the
        cached tokens.
        """
        ...

    def logits_at(
        self, token_ids: Int[Tensor, "B T"], positions: Bool[Tensor, "B T"], cache: Any = None
    ) -> Float[Tensor, "N V"]:
        """Return the logits at the N selected ``positions`` only, row by row."""
        ...

    def prefill(self, token_ids: Int[Tensor, "B T"], cache: Any) -> None:
        """Extend ``cache`` by tokens without computing their logits."""
        ...

    def cache_bytes(self, batch_size: int, capacity: int) -> int:
        """Return the bytes of a cache of this size."""
        ...

    def new_cache(self, batch_size: int, capacity: int = 0) -> Cache:
        """Return an empty cache for ``batch_size`` sequences of up to ``capacity`` tokens; 0:
        ``context_length``.
        """
        ...
