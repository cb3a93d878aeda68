"""Attention with a state of fixed size: constant time and memory per additional token.

Shapes: B batch, H heads, T positions, K head width, C positions of a chunk, N chunks.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from wholegpt.model.layers.attention import SelfAttention, SequenceContext
from wholegpt.model.layers.cache import RecurrentCache
from wholegpt.model.layers.linear import Linear
from wholegpt.runtime import at_least_float32
from wholegpt.settings.choices import Attention, Bias
from wholegpt.settings.schema import ModelConfig

CHUNK = 64
"""Positions that attend to each other directly; earlier positions enter through their sum."""


def feature_map(x: Float[Tensor, "*B K"]) -> Float[Tensor, "*B K"]:
    """Compute φ(x) = elu(x) + 1, which is positive (Katharopoulos et al. 2020, section 3.2.1)."""
    return F.elu(x) + 1


def linear_attention_step(
    query: Float[Tensor, "B H K"],
    key: Float[Tensor, "B H K"],
    value: Float[Tensor, "B H K"],
    state: Float[Tensor, "B H K K+1"],
) -> tuple[Float[Tensor, "B H K"], Float[Tensor, "B H K K+1"]]:
    """Compute the recurrent form: S ← S + φ(k)·[v, 1]ᵀ, [n, z] = φ(q)ᵀ·S, n / z (Katharopoulos et al. 2020,
    3.4).
    """
    extended = torch.cat((value, torch.ones_like(value[..., :1])), dim=-1)
    state = state + feature_map(key)[..., :, None] * extended[..., None, :]
    with torch.autocast(value.device.type, enabled=False):
        mixed = (feature_map(query)[..., None, :] @ state).squeeze(-2)
    return mixed[..., :-1] / mixed[..., -1:], state


def linear_attention(
    queries: Float[Tensor, "B H T K"],
    keys: Float[Tensor, "B H T K"],
    values: Float[Tensor, "B H T K"],
    state: Float[Tensor, "B H K K+1"],
) -> tuple[Float[Tensor, "B H T K"], Float[Tensor, "B H K K+1"]]:
    """Compute the parallel form: Σ_{j≤i} φ(q_i)·φ(k_j)·v_j / Σ_{j≤i} φ(q_i)·φ(k_j). Returns also the last
    state S.

    ``state`` is the sum of earlier positions. Positions within a chunk of C use masked products; chunks use
    the sum S. The dtype is that of the inputs, also under autocast, because long sums need its precision.
    """
    length = queries.shape[2]
    ones = torch.ones_like(values[..., :1])
    parts = (feature_map(queries), feature_map(keys), torch.cat((values, ones), dim=-1))
    # Padding after φ with zeros adds nothing to the sums.
    q, k, v = (F.pad(x, (0, 0, 0, -length % CHUNK)).unflatten(2, (-1, CHUNK)) for x in parts)
    with torch.autocast(values.device.type, enabled=False):
        sums = (k.transpose(-2, -1) @ v).cumsum(dim=2) + state.unsqueeze(2)
        before = torch.cat((state.unsqueeze(2), sums[:, :, :-1]), dim=2)
        mixed = (q @ k.transpose(-2, -1)).tril() @ v + q @ before
    mixed = mixed.flatten(2, 3)[:, :, :length]
    return mixed[..., :-1] / mixed[..., -1:], sums[:, :, -1]


class LinearAttention(SelfAttention):
    """Multi-head attention with φ(q)·φ(k) in place of exp(q·k/√K) (Katharopoulos et al. 2020), without
    dropout of weights.
    """

    def attend(
        self,
        queries: Float[Tensor, "B H T K"],
        keys: Float[Tensor, "B G T K"],
        values: Float[Tensor, "B G T K"],
        context: SequenceContext,
        layer: int,
    ) -> Float[Tensor, "B H T K"]:
        """Return each head's weighted means; the cache stores the sum S."""
        keys, values = self.shared(keys), self.shared(values)
        queries, keys, values = (at_least_float32(x) for x in (queries, keys, values))
        if not isinstance(context.cache, RecurrentCache):
            state = values.new_zeros(len(queries), self.n_heads, self.d_head, self.d_head + 1)
            return linear_attention(queries, keys, values, state)[0]
        state = context.cache.states[layer].to(values.dtype)
        if queries.shape[2] == 1:
            mixed, state = linear_attention_step(queries[:, :, 0], keys[:, :, 0], values[:, :, 0], state)
            mixed = mixed.unsqueeze(2)
        else:
            mixed, state = linear_attention(queries, keys, values, state)
        context.cache.states[layer] = state
        return mixed


def state_shape(config: ModelConfig, batch_size: int) -> tuple[int, ...]:
    """Return the shape of a cache: S of each layer, sequence and head, or the sum of the values."""
    layers = config.n_layers, batch_size
    if config.attention is Attention.average:
        return *layers, config.n_heads * config.d_head
    return *layers, config.n_heads, config.d_head, config.d_head + 1


class AverageAttention(nn.Module):
    """The mean of the values at and before each position, projected by W_O: attention whose weights are all
    1/t.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.n_heads * config.d_head
        self.value = Linear(config.d_model, width, bias=config.bias is not Bias.none)
        self.output = Linear(width, config.d_model, bias=config.bias is Bias.all)

    def forward(
        self, stream: Float[Tensor, "B T D"], context: SequenceContext, layer: int
    ) -> Float[Tensor, "B T D"]:
        """Compute h_t = W_O·(1/t)·Σ_{j≤t} W_V·x_j; the cache stores the sum."""
        sums = at_least_float32(self.value(stream)).cumsum(dim=1)
        counts = torch.arange(1, stream.shape[1] + 1, device=stream.device)
        if isinstance(context.cache, RecurrentCache):
            sums = sums + context.cache.states[layer].unsqueeze(1)
            context.cache.states[layer] = sums[:, -1]
            counts = context.cache.lengths.to(stream.device)[:, None] + counts
        return self.output((sums / counts.unsqueeze(-1)).to(stream.dtype))
