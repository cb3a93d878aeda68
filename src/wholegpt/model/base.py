"""Base classes of models: what every model offers, and what networks over token embeddings share.

Shapes: B batch, T positions, D width, V vocabulary, N selected positions.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from wholegpt.losses import linear_cross_entropy, token_log_probabilities
from wholegpt.model.layers.linear import Linear
from wholegpt.model.layers.positions import Rotation, make_positions
from wholegpt.settings.choices import Embeddings
from wholegpt.settings.schema import ModelConfig

INITIAL_STANDARD_DEVIATION = 0.02


class TokenModel(nn.Module, ABC):
    """An ``interface.CausalLanguageModel`` that is built from a ``ModelConfig`` and whose tensors can be
    saved.
    """

    predicts_next_token = True
    """Whether the logits at a position are of the token after it."""
    has_source = False
    """Whether a text begins with a source, up to a separator, that all positions after it see at once."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

    @property
    def vocab_size(self) -> int:
        """Return V, the number of tokens in the vocabulary."""
        return self.config.vocab_size

    @property
    def context_length(self) -> int:
        """Return τ, the length of a training window and the largest number of positions that attention sees.

        Learned positions end there.
        """
        return self.config.context_length

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Return the device of the tensors."""

    @property
    @abstractmethod
    def ends_at_context(self) -> bool:
        """Return whether the model is limited to τ positions."""

    @abstractmethod
    def forward(self, token_ids: Int[Tensor, "B T"], cache: Any = None) -> Float[Tensor, "B T V"]:
        """Return the logits of the token that follows each position.

        With a ``cache``, positions continue from the cached tokens, and the cache is extended by T.
        """

    @abstractmethod
    def logits_at(
        self, token_ids: Int[Tensor, "B T"], positions: Bool[Tensor, "B T"], cache: Any = None
    ) -> Float[Tensor, "N V"]:
        """Return the logits of ``forward`` at the N selected ``positions`` only, row by row."""

    @abstractmethod
    def prefill(self, token_ids: Int[Tensor, "B T"], cache: Any) -> None:
        """Extend ``cache`` by T positions without computing their logits."""

    @abstractmethod
    def new_cache(self, batch_size: int, capacity: int = 0) -> Any:
        """Return an empty cache for ``batch_size`` sequences of up to ``capacity`` tokens (0: τ)."""

    @abstractmethod
    def cache_bytes(self, batch_size: int, capacity: int) -> int:
        """Return the bytes of a cache of this size."""

    def head_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the task head, if the model has one."""
        return []

    @property
    def parameter_count(self) -> int:
        """Return the number of parameters; a tied matrix counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def own_tensors(self) -> dict[str, Tensor]:
        """Return the tensors to save, by name."""
        return {name: tensor.detach().contiguous() for name, tensor in self.state_dict().items()}


class NeuralModel(TokenModel):
    """A network over token embeddings, whose output projection may be tied to them (E7)."""

    unembedding: Linear

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.token_embedding = nn.Embedding(config.vocab_size, config.d_model)

    def make_unembedding(self) -> Linear:
        """Return the output projection: the token embedding if tied, else a matrix of its own."""
        made = Linear(self.config.d_model, self.config.vocab_size, bias=False)
        if self.config.embeddings is Embeddings.tied:
            made.weight = self.token_embedding.weight
        return made

    @property
    def device(self) -> torch.device:
        """Return the device of the weights."""
        return self.token_embedding.weight.device

    @abstractmethod
    def hidden_states(
        self, token_ids: Int[Tensor, "B T"], cache: Any = None, documents: Int[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B T D"]:
        """Return the hidden states that ``logits_of`` maps to logits."""

    @abstractmethod
    def block_matrices(self) -> Iterator[tuple[nn.Parameter, list[int]]]:
        """Yield each weight matrix between the embeddings, with the number of rows of each map stacked in it."""

    def forward(self, token_ids: Int[Tensor, "B T"], cache: Any = None) -> Float[Tensor, "B T V"]:
        """Return the logits of the token that follows each position (E7)."""
        return self.logits_of(self.hidden_states(token_ids, cache))

    def logits_of(self, hidden: Float[Tensor, "*N D"]) -> Float[Tensor, "*N V"]:
        """Compute h·W_eᵀ."""
        return self.unembedding(hidden)

    def next_token_nats(
        self,
        token_ids: Int[Tensor, "B T"],
        targets: Int[Tensor, "B T"],
        documents: Int[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, " "]:
        """Return Σ −ln p of the scored ``targets``, in nats (E8), without storing B·T·V logits."""
        return self.nats_of(self.hidden_states(token_ids, documents=documents), targets)

    def nats_of(
        self,
        hidden: Float[Tensor, "B T D"],
        targets: Int[Tensor, "B T"],
        weights: Float[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, " "]:
        """Return Σ −w·ln p of the scored ``targets``, given the hidden states; the weights w are 1 by default."""
        return linear_cross_entropy(hidden, self.unembedding.weight, targets, weights)

    def log_probabilities(
        self,
        token_ids: Int[Tensor, "B T"],
        targets: Int[Tensor, "B T"],
        documents: Int[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T"]:
        """Return ln p of each target, 0 where it is not scored, without storing B·T·V logits."""
        return self.log_probabilities_of(self.hidden_states(token_ids, documents=documents), targets)

    def log_probabilities_of(
        self, hidden: Float[Tensor, "B T D"], targets: Int[Tensor, "B T"]
    ) -> Float[Tensor, "B T"]:
        """Return ln p of each target, 0 where it is not scored, given the hidden states."""
        return token_log_probabilities(hidden, self.unembedding.weight, targets)

    def logits_at(
        self, token_ids: Int[Tensor, "B T"], positions: Bool[Tensor, "B T"], cache: Any = None
    ) -> Float[Tensor, "N V"]:
        """Return the logits of ``forward`` at the N selected ``positions`` only, row by row."""
        return self.logits_of(self.hidden_states(token_ids, cache)[positions])

    def prefill(self, token_ids: Int[Tensor, "B T"], cache: Any) -> None:
        """Extend ``cache`` by T positions without computing their logits."""
        self.hidden_states(token_ids, cache)

    def own_tensors(self) -> dict[str, Tensor]:
        """Return the tensors to save; a tied output projection is left out."""
        tensors = super().own_tensors()
        if self.unembedding.weight is self.token_embedding.weight:
            del tensors["unembedding.weight"]
        return tensors


class PositionedModel(NeuralModel):
    """A network with position information: added to the embeddings, or as a rotation of queries and keys."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.position_embedding, self.rotary = make_positions(config)

    def embedded(
        self, token_ids: Int[Tensor, "B T"], positions: Int[Tensor, "*B T"]
    ) -> Float[Tensor, "B T D"]:
        """Compute h₀ = W_e[x] + W_p[t] (E3)."""
        stream = self.token_embedding(token_ids)
        if self.position_embedding is None:
            return stream
        return stream + self.position_embedding(positions).to(stream.dtype)

    def rotation(self, positions: Int[Tensor, "*B T"], stream: Float[Tensor, "B T D"]) -> Rotation | None:
        """Return the rotation of queries and keys at these positions, or ``None`` without rotary positions."""
        if self.rotary is None:
            return None
        of_heads = positions.unsqueeze(1) if positions.ndim == 2 else positions
        return self.rotary(of_heads, torch.promote_types(stream.dtype, torch.float32))
