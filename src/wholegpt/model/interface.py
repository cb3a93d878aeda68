"""What a language model is to the rest of the program: token ids in, logits out.

Training, generation and evaluation are written against these protocols and nothing else,
so an n-gram table or a recurrent network can stand where a transformer stands.
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor


@runtime_checkable
class Cache(Protocol):
    """What a model keeps of the tokens it has read, so that it need not read them again."""

    @property
    def lengths(self) -> Int[Tensor, " B"]:
        """How many tokens of each sequence have been read; setting one lower forgets those after it, where it can."""
        ...

    @property
    def rewinds(self) -> bool:
        """Whether tokens can be forgotten one by one."""
        ...

    def can_forget(self, row: int, length: int) -> bool:
        """Whether a sequence can go back to its first ``length`` tokens."""
        ...

    def rows(self, first: int, last: int) -> "Cache":
        """Sequences ``first`` to ``last`` − 1 in the same memory."""
        ...

    def reorder(self, sources: Sequence[int]) -> None:
        """Make sequence i hold what sequence ``sources[i]`` does, all at once; those after the last stay."""
        ...

    def copy_row(self, source: int, target: int, length: int | None = None) -> None:
        """Make sequence ``target`` hold what ``source`` does, or its first ``length`` tokens."""
        ...

    def clear(self) -> None:
        """Forget them."""
        ...

    def repeated(self, batch_size: int, capacity: int) -> "Cache":
        """A cache for ``batch_size`` sequences of up to ``capacity`` tokens that all begin with these."""
        ...


@runtime_checkable
class CausalLanguageModel(Protocol):
    """Predicts each next token from the tokens before it. Its caches are those it makes itself."""

    @property
    def vocab_size(self) -> int:
        """V: how many tokens there are."""
        ...

    @property
    def context_length(self) -> int:
        """τ: how many tokens each token sees, itself included."""
        ...

    @property
    def ends_at_context(self) -> bool:
        """Whether there are no more than τ positions, so that a longer text has to begin anew."""
        ...

    def __call__(self, token_ids: Int[Tensor, "B T"], cache: Any = None) -> Float[Tensor, "B T V"]:
        """Logits of the token after each position; with ``cache``, positions go on from what it holds."""
        ...

    def logits_at(
        self, token_ids: Int[Tensor, "B T"], places: Bool[Tensor, "B T"], cache: Any = None
    ) -> Float[Tensor, "N V"]:
        """The logits of a call at some ``places`` only, N of them, row by row."""
        ...

    def read(self, token_ids: Int[Tensor, "B T"], cache: Any) -> None:
        """Extend ``cache`` by tokens after which nothing is predicted."""
        ...

    def cache_bytes(self, batch_size: int, capacity: int) -> int:
        """Bytes of such a cache."""
        ...

    def new_cache(self, batch_size: int, capacity: int = 0) -> Cache:
        """An empty cache for ``batch_size`` sequences of up to ``capacity`` tokens; 0: ``context_length``."""
        ...
