"""The decoder-only transformer: token ids in, logits out.

Shapes: B batch, T positions, D model width, V vocabulary.
"""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from wholegpt.errors import ConfigError
from wholegpt.model.base import INITIAL_STANDARD_DEVIATION, NeuralModel, PositionedModel
from wholegpt.model.layers.attention import SequenceContext
from wholegpt.model.layers.block import Block
from wholegpt.model.layers.cache import KeyValueCache, ModelCache, RecurrentCache, bounded_positions
from wholegpt.model.layers.dropout import dropout
from wholegpt.model.layers.linear import Linear
from wholegpt.model.layers.linear_attention import state_shape
from wholegpt.model.layers.masks import visible_keys
from wholegpt.model.layers.mixture_of_experts import ExpertLinear
from wholegpt.model.layers.norms import make_norm
from wholegpt.model.layers.positions import restarted_positions
from wholegpt.runtime import compute_dtype
from wholegpt.settings.choices import ActivationCheckpointing, AttentionKernel, NormPlacement
from wholegpt.settings.schema import ModelConfig
from wholegpt.settings.validation import RECURRENT, check_separable, complete_model


class Transformer(PositionedModel):
    """A decoder-only transformer: GPT-1, GPT-2 or modern, depending on its config.

    h₀ = W_e[x] + W_p[t] (E3), L blocks (E5), then logits LN(h_L)·W_eᵀ (E7). Post-norm blocks end with a
    normalization of their own, so they have no final LN, as in GPT-1.
    """

    def __init__(
        self,
        config: ModelConfig,
        kernel: AttentionKernel = AttentionKernel.plain,
        activation_checkpointing: ActivationCheckpointing = ActivationCheckpointing.none,
    ) -> None:
        config = complete_model(config)
        super().__init__(config)
        self.activation_checkpointing = activation_checkpointing
        pre_norm = config.norm_placement is NormPlacement.pre
        distinct = config.distinct_layers or config.n_layers
        self.blocks = nn.ModuleList(Block(config, kernel) for _ in range(distinct))
        self.final_norm = make_norm(config, config.d_model) if pre_norm else nn.Identity()
        self.unembedding = self.make_unembedding()
        initialize(self)

    @property
    def ends_at_context(self) -> bool:
        """Return whether the model is limited to τ positions: each one has its own vector."""
        return bounded_positions(self.config)

    def hidden_states(
        self,
        token_ids: Int[Tensor, "B T"],
        cache: ModelCache | None = None,
        documents: Int[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Return the residual stream after the last block and the final normalization.

        ``documents`` holds the document index of each token: documents do not see each other, and positions
        restart at 0 in each. It requires the whole sequence and cannot be combined with a ``cache``.
        """
        assert cache is None or documents is None
        if documents is not None:
            check_separable(self.config, "documents")
        length = token_ids.shape[1]
        if cache is not None and length > cache.most_at_once:
            pieces = token_ids.split(cache.most_at_once, dim=1)
            return torch.cat([self.hidden_states(piece, cache) for piece in pieces], dim=1)
        if cache is not None:
            positions, visible = cache.reserve(length)
        else:
            positions, visible = self._whole(length, documents)
        stream = self.embedded(token_ids, positions)
        context = SequenceContext(visible, self.rotation(positions, stream), cache)
        stream = self.through_blocks(stream, context)
        if cache is not None:
            cache.advance(length)
        return stream

    def through_blocks(
        self, stream: Float[Tensor, "B T D"], context: SequenceContext
    ) -> Float[Tensor, "B T D"]:
        """Return the last block's output after the final normalization, given h₀."""
        # From here on in the compute dtype: half the memory traffic.
        stream = dropout(stream.to(compute_dtype(stream)), self.config.dropout if self.training else 0.0)
        for layer in range(self.config.n_layers):
            block = self.blocks[layer % len(self.blocks)]
            if self.activation_checkpointing is ActivationCheckpointing.blocks and self.training:
                stream = checkpoint(block, stream, context, layer, use_reentrant=False)
            else:
                stream = block(stream, context, layer)
        return self.final_norm(stream)

    def _whole(
        self, length: int, documents: Int[Tensor, "B T"] | None
    ) -> tuple[Int[Tensor, "*B T"], Bool[Tensor, "*M T T"]]:
        """Return positions and attention mask of whole sequences."""
        if length > self.context_length and self.ends_at_context:
            raise ConfigError(f"{length} tokens do not fit model.context_length = {self.context_length}")
        visible = visible_keys(length, self.config, self.device)
        if length > self.context_length:
            visible = visible[None, None]
        if documents is None:
            return torch.arange(length, device=self.device), visible
        alike = documents[:, :, None] == documents[:, None]
        return restarted_positions(documents), visible & alike.unsqueeze(1)

    def block_matrices(self) -> Iterator[tuple[nn.Parameter, list[int]]]:
        """Yield each weight matrix of the blocks, with the number of rows of each map stacked in it."""
        for block in self.blocks:
            assert isinstance(block, Block)
            layers = (one for one in block.modules() if isinstance(one, Linear | ExpertLinear))
            stacked = {one.weight: one.stacked_rows for one in layers}
            for parameter in block.parameters():
                if parameter.ndim == 2:
                    yield parameter, stacked.get(parameter) or [len(parameter)]

    def new_cache(self, batch_size: int, capacity: int = 0) -> ModelCache:
        """Return an empty cache for ``capacity`` positions (0: τ) on the weights' device.

        Its dtype is that of the weights. For a single sequence on a CPU it is at least float32, which makes
        the product of one query with all keys three times as fast (docs/decisions.md). The state of linear
        attention is always at least float32.
        """
        if self.config.attention in RECURRENT:
            return RecurrentCache.empty(state_shape(self.config, batch_size), self.device, self._sum_dtype)
        dtype = self._cache_dtype(batch_size)
        return KeyValueCache.empty(
            self.config, batch_size, capacity or self.context_length, self.device, dtype
        )

    def cache_bytes(self, batch_size: int, capacity: int) -> int:
        """Return the bytes of a cache of this size."""
        if self.config.attention in RECURRENT:
            return math.prod(state_shape(self.config, batch_size)) * self._sum_dtype.itemsize
        return KeyValueCache.bytes(self.config, batch_size, capacity, self._cache_dtype(batch_size))

    @property
    def _sum_dtype(self) -> torch.dtype:
        return torch.promote_types(self.token_embedding.weight.dtype, torch.float32)

    def _cache_dtype(self, batch_size: int) -> torch.dtype:
        dtype = self.token_embedding.weight.dtype
        alone_on_cpu = batch_size == 1 and self.device.type == "cpu"
        return torch.promote_types(dtype, torch.float32) if alone_on_cpu else dtype


@torch.no_grad()
def initialize(model: NeuralModel) -> None:
    """Initialize as GPT-2: N(0, 0.02²); biases 0; output projections of the residual branches scaled by
    1/√(2L).

    The scaling keeps the variance of the residual stream from growing with depth (Radford et al. 2019,
    section 2.3). Norms start as the identity.
    """
    residual_scale = 1 / math.sqrt(2 * model.config.n_layers)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding | ExpertLinear):
            scale = residual_scale if name.endswith(".output") else 1.0
            nn.init.normal_(module.weight, std=INITIAL_STANDARD_DEVIATION * scale)
        if isinstance(module, nn.Linear | ExpertLinear) and module.bias is not None:
            nn.init.zeros_(module.bias)
