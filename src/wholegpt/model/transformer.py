"""The model: token ids -> logits.

Shapes: B batch, T positions, D model width, V vocabulary.
"""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from wholegpt.checks import complete_model
from wholegpt.config import AttentionKernel, Embeddings, ModelConfig, NormPlacement, Positions, Recompute
from wholegpt.errors import ConfigError
from wholegpt.model.attention import SequenceContext
from wholegpt.model.block import Block
from wholegpt.model.cache import KeyValueCache
from wholegpt.model.dropout import Dropout
from wholegpt.model.linear import Linear
from wholegpt.model.norms import make_norm
from wholegpt.model.positions import LearnedPositions, RotaryPositions, restarted_positions
from wholegpt.runtime import compute_dtype

INITIAL_STANDARD_DEVIATION = 0.02


class Transformer(nn.Module):
    """A decoder-only transformer, GPT-1, GPT-2 or modern by its config.

    h₀ = W_e[x] + W_p[t] (E3), L blocks (E5), then logits LN(h_L)·W_eᵀ (E7; post-norm blocks end
    in a normalisation of their own, so there the last LN is left out, as in GPT-1).
    """

    def __init__(
        self,
        config: ModelConfig,
        kernel: AttentionKernel = AttentionKernel.plain,
        recompute: Recompute = Recompute.nothing,
    ) -> None:
        super().__init__()
        config = complete_model(config)
        self.config = config
        self.recompute = recompute
        learned = config.positions is Positions.learned
        pre_norm = config.norm_placement is NormPlacement.pre
        tied = config.embeddings is Embeddings.tied
        self.token_embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.position_embedding = LearnedPositions(config.context_length, config.d_model) if learned else None
        self.rotary = None if learned else RotaryPositions(config.d_head, config.rotary_base)
        self.embedding_dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer, kernel) for layer in range(config.n_layers))
        self.final_norm = make_norm(config, config.d_model) if pre_norm else nn.Identity()
        self.unembedding = Linear(config.d_model, config.vocab_size, bias=False)
        if tied:
            self.unembedding.weight = self.token_embedding.weight
        initialize(self)

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.config.vocab_size

    @property
    def context_length(self) -> int:
        """τ: positions one call, or one cache, can hold."""
        return self.config.context_length

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.token_embedding.weight.device

    def forward(
        self, token_ids: Int[Tensor, "B T"], cache: KeyValueCache | None = None
    ) -> Float[Tensor, "B T V"]:
        """Logits of the token that follows each position (E7).

        With a ``cache`` the positions go on from what it holds, and it is extended by T. Raises
        ``ConfigError`` beyond ``context_length`` positions.
        """
        return self.unembedding(self.hidden_states(token_ids, cache))

    def hidden_states(
        self,
        token_ids: Int[Tensor, "B T"],
        cache: KeyValueCache | None = None,
        documents: Int[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """The residual stream after the last block and its normalisation.

        ``documents`` numbers the document that each token is in: documents do not see each other, and positions begin
        anew in each. It needs the whole sequence, so it cannot go with a ``cache``.
        """
        assert cache is None or documents is None
        start, length = (cache.length if cache else 0), token_ids.shape[1]
        if start + length > self.context_length:
            raise ConfigError(
                f"{start + length} tokens do not fit model.context_length = {self.context_length}"
            )
        end = start + length
        positions = torch.arange(start, end, device=token_ids.device)
        visible = torch.ones(length, end, dtype=torch.bool, device=token_ids.device).tril(diagonal=start)
        if documents is not None:
            positions = restarted_positions(documents)
            visible = (visible & (documents[:, :, None] == documents[:, None])).unsqueeze(1)
        stream = self.token_embedding(token_ids)
        of_heads = positions if documents is None else positions.unsqueeze(1)
        rotation = self.rotary(of_heads, stream.dtype) if self.rotary is not None else None
        context = SequenceContext(visible, rotation, cache)
        if self.position_embedding is not None:
            stream = stream + self.position_embedding(positions)
        # From here on in the number format of the products: half the memory to read and write.
        stream = self.embedding_dropout(stream.to(compute_dtype(stream)))
        for block in self.blocks:
            if self.recompute is Recompute.blocks and self.training:
                stream = checkpoint(block, stream, context, use_reentrant=False)
            else:
                stream = block(stream, context)
        if cache is not None:
            cache.advance(length)
        return self.final_norm(stream)

    def block_matrices(self) -> Iterator[tuple[nn.Parameter, list[int]]]:
        """The weight matrices of the blocks, each with the rows of the maps stacked in it."""
        for block in self.blocks:
            assert isinstance(block, Block)
            attention = block.attention
            for parameter in block.parameters():
                if parameter.ndim == 2:
                    stacked = parameter is attention.query_key_value.weight
                    yield parameter, attention.stacked_rows if stacked else [len(parameter)]

    def logits_at(
        self, token_ids: Int[Tensor, "B T"], places: Bool[Tensor, "B T"], cache: KeyValueCache | None = None
    ) -> Float[Tensor, "N V"]:
        """The logits of ``forward`` at some ``places`` only, N of them, row by row."""
        return self.unembedding(self.hidden_states(token_ids, cache)[places])

    def read(self, token_ids: Int[Tensor, "B T"], cache: KeyValueCache) -> None:
        """Extend ``cache`` by T positions whose logits nobody needs."""
        self.hidden_states(token_ids, cache)

    def new_cache(self, batch_size: int, capacity: int = 0) -> KeyValueCache:
        """An empty cache for ``capacity`` positions (0: τ) in the weights' number format, on the weights' device."""
        capacity = capacity or self.context_length
        return KeyValueCache.empty(
            self.config, batch_size, capacity, self.device, self.token_embedding.weight.dtype
        )


@torch.no_grad()
def initialize(model: Transformer) -> None:
    """GPT-2's initialisation: N(0, 0.02²); biases 0; what writes to the residual stream scaled by 1/√(2L).

    The scaling keeps the variance of the residual stream from growing with depth (Radford et al.
    2019, section 2.3). Norms start as the identity.
    """
    residual_scale = 1 / math.sqrt(2 * model.config.n_layers)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            scale = residual_scale if name.endswith(".output") else 1.0
            nn.init.normal_(module.weight, std=INITIAL_STANDARD_DEVIATION * scale)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
