"""Recurrent networks: Elman, GRU and LSTM. Each state is computed from the previous state and the token.

Shapes: B batch, T positions, D width, G entries of all gates, S entries of a state, L layers.
"""

import math
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from wholegpt.model.base import INITIAL_STANDARD_DEVIATION, NeuralModel
from wholegpt.model.layers.cache import RecurrentCache
from wholegpt.model.layers.dropout import dropout
from wholegpt.settings.choices import Architecture
from wholegpt.settings.schema import ModelConfig
from wholegpt.settings.validation import check_separable


def elman_step(
    from_input: Float[Tensor, "B D"],
    from_state: Float[Tensor, "B D"],
    state: Float[Tensor, "B D"],  # noqa: ARG001 (included in from_state)
) -> Float[Tensor, "B D"]:
    """Compute h′ = tanh(W·x + b + U·h + c) (Elman 1990)."""
    return torch.tanh(from_input + from_state)


def gru_step(
    from_input: Float[Tensor, "B G"], from_state: Float[Tensor, "B G"], state: Float[Tensor, "B D"]
) -> Float[Tensor, "B D"]:
    """Compute r, z = σ(W·x + b + U·h + c), n = tanh(W_n·x + b_n + r ⊙ (U_n·h + c_n)), h′ = (1 − z) ⊙ n + z ⊙
    h.

    r and z have separate matrices (Cho et al. 2014). r is applied after the product U_n·h, as in cuDNN, not
    before.
    """
    (r_x, z_x, n_x), (r_h, z_h, n_h) = (part.chunk(3, dim=-1) for part in (from_input, from_state))
    r, z = torch.sigmoid(r_x + r_h), torch.sigmoid(z_x + z_h)
    n = torch.tanh(n_x + r * n_h)
    return (1 - z) * n + z * state


def lstm_step(
    from_input: Float[Tensor, "B G"], from_state: Float[Tensor, "B G"], state: Float[Tensor, "B S"]
) -> Float[Tensor, "B S"]:
    """Compute i, f, o = σ(W·x + b + U·h + c), g = tanh(W·x + b + U·h + c), c′ = f ⊙ c + i ⊙ g, h′ = o ⊙
    tanh(c′).

    Each gate has separate matrices (Hochreiter and Schmidhuber 1997; the forget gate f is from Gers et al.
    2000). The state is the concatenation of h and c.
    """
    i, f, g, o = (from_input + from_state).chunk(4, dim=-1)
    cell = torch.sigmoid(f) * state.chunk(2, dim=-1)[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.cat((torch.sigmoid(o) * torch.tanh(cell), cell), dim=-1)


STEPS: dict[Architecture, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    Architecture.elman: elman_step,
    Architecture.gru: gru_step,
    Architecture.lstm: lstm_step,
}
LAYERS: dict[Architecture, Callable[..., nn.RNNBase]] = {
    Architecture.elman: nn.RNN,
    Architecture.gru: nn.GRU,
    Architecture.lstm: nn.LSTM,
}
"""PyTorch's layers, which process a whole sequence in one call."""


def run_steps(
    layer: nn.RNNBase,
    step: Callable[[Tensor, Tensor, Tensor], Tensor],
    x: Float[Tensor, "B T D"],
    state: Float[Tensor, "B S"],
) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B S"]]:
    """Run ``layer`` step by step, as a plain twin. Returns the states h and the last state."""
    width, states = layer.hidden_size, list[Tensor]()
    w, u, b, c = (
        layer.get_parameter(f"{name}_l0") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    for t in range(x.shape[1]):
        from_input = x[:, t] @ w.t() + b
        from_state = state[:, :width] @ u.t() + c
        state = step(from_input, from_state, state)
        states.append(state[:, :width])
    return torch.stack(states, dim=1), state


class RecurrentNetwork(NeuralModel):
    """L recurrent layers of one kind over the token embeddings; every window starts from state 0.

    Dropout is applied to the embeddings and to the output of each layer.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        make = LAYERS[config.architecture]
        width = config.d_model
        self.layers = nn.ModuleList(make(width, width, batch_first=True) for _ in range(config.n_layers))
        self.states = 2 if config.architecture is Architecture.lstm else 1
        self.unembedding = self.make_unembedding()
        initialize(self)

    @property
    def ends_at_context(self) -> bool:
        """Return ``False``: the model has no positions."""
        return False

    def hidden_states(
        self,
        token_ids: Int[Tensor, "B T"],
        cache: RecurrentCache | None = None,
        documents: Int[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Return the states of the last layer."""
        if documents is not None:
            check_separable(self.config, "documents")
        p = self.config.dropout if self.training else 0.0
        stream = dropout(self.token_embedding(token_ids), p)
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, nn.RNNBase)
            before = None if cache is None else self._given(cache.states[index])
            stream, after = layer(stream, before)
            if cache is not None:
                cache.states[index] = torch.cat(after, dim=-1)[0] if self.states == 2 else after[0]
            stream = dropout(stream, p)
        if cache is not None:
            cache.advance(token_ids.shape[1])
        return stream

    def _given(self, state: Float[Tensor, "B S"]) -> Tensor | tuple[Tensor, ...]:
        """Return a state in the form that PyTorch's layers expect."""
        parts = tuple(part.contiguous().unsqueeze(0) for part in state.chunk(self.states, dim=-1))
        return parts if self.states == 2 else parts[0]

    def new_cache(self, batch_size: int, capacity: int = 0) -> RecurrentCache:
        """Return the state 0, whose size does not depend on the index of tokens."""
        shape = self._state_shape(batch_size)
        return RecurrentCache.empty(shape, self.device, self.token_embedding.weight.dtype)

    def cache_bytes(self, batch_size: int, capacity: int) -> int:
        """Return L · B · D · (bytes per element), twice that for LSTM."""
        return math.prod(self._state_shape(batch_size)) * self.token_embedding.weight.dtype.itemsize

    def _state_shape(self, batch_size: int) -> tuple[int, int, int]:
        return self.config.n_layers, batch_size, self.states * self.config.d_model

    def block_matrices(self) -> Iterator[tuple[nn.Parameter, list[int]]]:
        """Yield W and U of each layer, with as many stacked maps as it has gates."""
        for parameter in self.layers.parameters():
            if parameter.ndim == 2:
                width = parameter.shape[1]
                yield parameter, [width] * (len(parameter) // width)


@torch.no_grad()
def initialize(model: RecurrentNetwork) -> None:
    """Initialize embeddings with N(0, 0.02²), all else uniformly in ±1/√D, and LSTM's forget biases with 1."""
    nn.init.normal_(model.token_embedding.weight, std=INITIAL_STANDARD_DEVIATION)
    if model.unembedding.weight is not model.token_embedding.weight:
        nn.init.normal_(model.unembedding.weight, std=INITIAL_STANDARD_DEVIATION)
    width = model.config.d_model
    for parameter in model.layers.parameters():
        nn.init.uniform_(parameter, -1 / math.sqrt(width), 1 / math.sqrt(width))
    if model.config.architecture is Architecture.lstm:
        for layer in model.layers:
            layer.get_parameter("bias_ih_l0")[width : 2 * width].fill_(1)
