"""What a language model is to the rest of the program: token ids in, logits out.

Training, generation and evaluation are written against these protocols and nothing else,
so an n-gram table or a recurrent network can stand where a transformer stands.
"""

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor


@runtime_checkable
class Cache(Protocol):
    """What a model keeps of the tokens it has read, so that it need not read them again."""

    @property
    def length(self) -> int:
        """How many tokens have been read."""
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
        """τ: how many tokens one call can read."""
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

    def new_cache(self, batch_size: int, capacity: int = 0) -> Cache:
        """An empty cache for ``batch_size`` sequences of up to ``capacity`` tokens; 0: ``context_length``."""
        ...
