"""A transformer in two halves: a bidirectional encoder of a source, a decoder of a target (Vaswani et al.
2017).

A sequence is source, separator, target. The encoder processes the source including the separator, and the
decoder starts with the separator. A sequence can therefore be trained on, scored and generated like that of
any other model.

Shapes: B batch, T positions, S source positions, D model width, H heads, K head width, L layers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from wholegpt.errors import ConfigError
from wholegpt.model.base import PositionedModel
from wholegpt.model.layers.attention import SequenceContext, attention
from wholegpt.model.layers.block import Block
from wholegpt.model.layers.cache import KeyValueCache
from wholegpt.model.layers.dropout import dropout
from wholegpt.model.layers.linear import Linear
from wholegpt.model.layers.norms import make_norm
from wholegpt.model.layers.positions import restarted_positions
from wholegpt.model.transformer import initialize
from wholegpt.runtime import compute_dtype
from wholegpt.settings.choices import AttentionKernel, Bias, NormPlacement
from wholegpt.settings.schema import ModelConfig
from wholegpt.settings.validation import complete_model


class CrossAttention(nn.Module):
    """Compute softmax(Q·Kᵀ/√K + M)·V with queries of the target, keys and values of the source (E4), and
    project by W_O.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        bias = config.bias is not Bias.none
        self.d_head, self.dropout = config.d_head, config.dropout
        width = config.n_heads * config.d_head
        self.query = Linear(config.d_model, width, bias=bias)
        self.key_value = Linear(config.d_model, 2 * width, bias=bias)
        self.key_value.stacked_rows = [width, width]
        self.output = Linear(width, config.d_model, bias=config.bias is Bias.all)

    def keys_values(self, source: Float[Tensor, "B S D"]) -> Float[Tensor, "2 B H S K"]:
        """Return the keys and values of the source, which every target position attends to."""
        batch, length, _ = source.shape
        return self.key_value(source).view(batch, length, 2, -1, self.d_head).permute(2, 0, 3, 1, 4)

    def forward(
        self,
        stream: Float[Tensor, "B T D"],
        memory: Float[Tensor, "2 B H S K"],
        visible: Bool[Tensor, "B 1 T S"],
    ) -> Float[Tensor, "B T D"]:
        """Return each position's weighted mean of the source values, projected by W_O."""
        batch, length, _ = stream.shape
        queries = self.query(stream).view(batch, length, -1, self.d_head).transpose(1, 2)
        p = self.dropout if self.training else 0.0
        mixed = attention(queries, memory[0], memory[1], visible, p)
        return self.output(mixed.transpose(1, 2).reshape(batch, length, -1))


@dataclass(frozen=True)
class Source:
    """The encoder's outputs as the decoder sees them in one forward pass."""

    memories: Sequence[Float[Tensor, "2 B H S K"]]
    """Keys and values of each layer."""
    visible: Bool[Tensor, "B 1 T S"]


class DecoderBlock(Block):
    """A block with cross-attention between self-attention and the feed-forward layer."""

    def __init__(self, config: ModelConfig, kernel: AttentionKernel) -> None:
        super().__init__(config, kernel)
        self.cross_norm = make_norm(config, config.d_model)
        self.cross_attention = CrossAttention(config)

    def decode(
        self, stream: Float[Tensor, "B T D"], context: SequenceContext, layer: int, source: Source
    ) -> Float[Tensor, "B T D"]:
        """Return the residual stream after this block."""
        memory, visible = source.memories[layer], source.visible
        stream = self.add(stream, self.attention_norm, lambda h: self.attention(h, context, layer))
        stream = self.add(stream, self.cross_norm, lambda h: self.cross_attention(h, memory, visible))
        return self.add(stream, self.feed_forward_norm, self.feed_forward)


class EncoderDecoder(PositionedModel):
    """L encoder blocks over the source and L decoder blocks over the target, with one embedding for both."""

    has_source = True

    def __init__(self, config: ModelConfig) -> None:
        config = complete_model(config)
        super().__init__(config)
        blocks = range(config.n_layers)
        self.encoder = nn.ModuleList(Block(config, AttentionKernel.plain) for _ in blocks)
        self.decoder = nn.ModuleList(DecoderBlock(config, AttentionKernel.plain) for _ in blocks)
        pre = config.norm_placement is NormPlacement.pre
        self.encoder_norm, self.decoder_norm = (
            make_norm(config, config.d_model) if pre else nn.Identity() for _ in range(2)
        )
        self.unembedding = self.make_unembedding()
        initialize(self)

    @property
    def ends_at_context(self) -> bool:
        """Return ``True``: the source keeps its positions, so there are at most τ."""
        return True

    def hidden_states(
        self,
        token_ids: Int[Tensor, "B T"],
        cache: "SourceCache | None" = None,
        documents: Int[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Return the decoder's last states; states at source positions, where nothing is predicted, are
        undefined.

        ``documents`` marks independent sequences in a row, each with its own source.
        """
        if cache is not None:
            return self._next_states(token_ids, cache)
        if token_ids.shape[1] > self.context_length:
            raise ConfigError(
                f"{token_ids.shape[1]} tokens do not fit model.context_length = {self.context_length}"
            )
        parts = _parts(token_ids, documents, self.config.separator)
        itself = torch.eye(token_ids.shape[1], dtype=torch.bool, device=token_ids.device)
        of_source = (parts.alike & parts.source[:, None, :]).unsqueeze(1)
        before = parts.alike & parts.target[:, None, :] & itself.new_ones(itself.shape).tril()
        encoded = self._encoded(token_ids, parts.positions, of_source)
        source = Source([block.cross_attention.keys_values(encoded) for block in self._decoder], of_source)
        return self._decoded(token_ids, parts.target_positions, (before | itself).unsqueeze(1), None, source)

    def _next_states(self, token_ids: Int[Tensor, "B T"], cache: "SourceCache") -> Float[Tensor, "B T D"]:
        """Compute the same with a cache: source tokens are buffered until the separator, then encoded at
        once.
        """
        buffered = [
            self._buffer_source(row, token_ids[row], cache.rows(row, row + 1))
            for row in range(len(token_ids))
        ]
        if not any(buffered):
            return self._decode_target(token_ids, cache)
        states = token_ids.new_zeros(
            *token_ids.shape, self.config.d_model, dtype=self.token_embedding.weight.dtype
        )
        for row, count in enumerate(buffered):
            if count < token_ids.shape[1]:
                states[row, count:] = self._decode_target(
                    token_ids[row : row + 1, count:], cache.rows(row, row + 1)
                )[0]
        return states

    def _buffer_source(self, row: int, token_ids: Int[Tensor, " T"], cache: "SourceCache") -> int:
        """Buffer the tokens before a separator, and encode the source when it arrives. Returns how many
        tokens were buffered.
        """
        if cache.complete:
            return 0
        known = int(cache.lengths[0])
        ends = (token_ids == self.config.separator).nonzero()
        count = int(ends[0, 0]) if len(ends) else len(token_ids)
        cache.tokens[0, known : known + count] = token_ids[:count]
        cache.lengths += count
        if len(ends):
            length = known + count + 1
            cache.tokens[0, length - 1] = self.config.separator
            positions = torch.arange(length, device=token_ids.device)
            encoded = self._encoded(cache.tokens[:, :length], positions, None)
            for layer, block in enumerate(self._decoder):
                cache.memories[layer, :, :, :, :length] = block.cross_attention.keys_values(encoded)
            cache.source_lengths[0] = length
        return count

    def _decode_target(self, token_ids: Int[Tensor, "B T"], cache: "SourceCache") -> Float[Tensor, "B T D"]:
        """Return the decoder's states of target tokens, whose sources have been encoded."""
        longest = int(cache.source_lengths.max())
        seen = (
            torch.arange(longest, device=token_ids.device)
            < cache.source_lengths.to(token_ids.device)[:, None]
        )
        visible = seen[:, None, None].expand(-1, 1, token_ids.shape[1], -1)
        source = Source(list(cache.memories[:, :, :, :, :longest]), visible)
        cache.decoder.lengths[:] = cache.lengths - cache.source_lengths + 1
        positions, before = cache.decoder.reserve(token_ids.shape[1])
        states = self._decoded(token_ids, positions, before, cache.decoder, source)
        cache.lengths += token_ids.shape[1]
        return states

    @property
    def _decoder(self) -> list[DecoderBlock]:
        return [block for block in self.decoder if isinstance(block, DecoderBlock)]

    def _embed(
        self,
        token_ids: Int[Tensor, "B T"],
        positions: Int[Tensor, "*B T"],
        visible: Bool[Tensor, "*M T S"] | None,
        cache: KeyValueCache | None,
    ) -> tuple[Float[Tensor, "B T D"], SequenceContext]:
        """Return h₀ of either half, and the context that its attention layers share."""
        stream = self.embedded(token_ids, positions)
        context = SequenceContext(visible, self.rotation(positions, stream), cache)
        p = self.config.dropout if self.training else 0.0
        return dropout(stream.to(compute_dtype(stream)), p), context

    def _encoded(
        self,
        token_ids: Int[Tensor, "B S"],
        positions: Int[Tensor, "*B S"],
        visible: Bool[Tensor, "B 1 S S"] | None,
    ) -> Float[Tensor, "B S D"]:
        stream, context = self._embed(token_ids, positions, visible, None)
        for layer, block in enumerate(self.encoder):
            stream = block(stream, context, layer)
        return self.encoder_norm(stream)

    def _decoded(
        self,
        token_ids: Int[Tensor, "B T"],
        positions: Int[Tensor, "*B T"],
        visible: Bool[Tensor, "*M T S"] | None,
        cache: KeyValueCache | None,
        source: Source,
    ) -> Float[Tensor, "B T D"]:
        stream, context = self._embed(token_ids, positions, visible, cache)
        for layer, block in enumerate(self._decoder):
            stream = block.decode(stream, context, layer, source)
        if cache is not None:
            cache.advance(token_ids.shape[1])
        return self.decoder_norm(stream)

    def block_matrices(self) -> Iterator[tuple[nn.Parameter, list[int]]]:
        """Yield the weight matrices of both halves, with the number of rows of each map stacked in them."""
        for half in (self.encoder, self.decoder):
            for module in half.modules():
                if isinstance(module, Linear):
                    for parameter in module.parameters():
                        if parameter.ndim == 2:
                            yield parameter, module.stacked_rows or [len(parameter)]

    def new_cache(self, batch_size: int, capacity: int = 0) -> "SourceCache":
        """Return an empty cache for sources and targets of up to ``capacity`` tokens together (0: τ)."""
        c, room = self.config, capacity or self.context_length
        dtype = self.token_embedding.weight.dtype
        shape = c.n_layers, 2, batch_size, c.n_heads, room, c.d_head
        return SourceCache(
            torch.zeros(batch_size, room, dtype=torch.long, device=self.device),
            torch.zeros(shape, dtype=dtype, device=self.device),
            KeyValueCache.empty(c, batch_size, room, self.device, dtype),
            torch.zeros(batch_size, dtype=torch.long),
            torch.zeros(batch_size, dtype=torch.long),
        )

    def cache_bytes(self, batch_size: int, capacity: int) -> int:
        """Return the bytes of the keys and values of source and target, and of the source tokens."""
        dtype = self.token_embedding.weight.dtype
        one = KeyValueCache.bytes(self.config, batch_size, capacity, dtype)
        return one * (1 + self.config.n_heads // self.config.n_kv_heads) + 8 * batch_size * capacity


@dataclass(frozen=True)
class Parts:
    """The part of a sequence that each position belongs to."""

    alike: Bool[Tensor, "B T T"]
    """Whether two positions are in the same document."""
    source: Bool[Tensor, "B T"]
    """Positions up to the first separator of their document, which belongs to source and target."""
    target: Bool[Tensor, "B T"]
    positions: Int[Tensor, "B T"]
    """Position in the document."""
    target_positions: Int[Tensor, "B T"]
    """Position after the separator of the document."""


def _parts(token_ids: Int[Tensor, "B T"], documents: Int[Tensor, "B T"] | None, separator: int) -> Parts:
    if documents is None:
        documents = torch.zeros_like(token_ids)
    index = torch.arange(token_ids.shape[1], device=token_ids.device).expand_as(token_ids)
    ends = token_ids == separator
    so_far = ends.long().cumsum(1)
    positions = restarted_positions(documents)
    before = torch.where(positions == 0, so_far - ends.long(), 0).cummax(1).values
    passed = so_far - before
    first = ends & (passed == 1)
    started = (index * first).cummax(1).values
    alike = documents[:, :, None] == documents[:, None]
    target = passed > 0
    return Parts(alike, (passed == 0) | first, target, positions, (index - started).clamp_min(0) * target)


class SourceCache:
    """Buffered source tokens, the keys and values that the encoder computed from them, and those of the
    targets.
    """

    can_rewind = True
    padded_capacity = 0  # a separator among the padding would end the source

    def __init__(
        self,
        tokens: Int[Tensor, "B S"],
        memories: Float[Tensor, "L 2 B H S K"],
        decoder: KeyValueCache,
        source_lengths: Int[Tensor, " B"],
        lengths: Int[Tensor, " B"],
    ) -> None:
        self.tokens, self.memories, self.decoder = tokens, memories, decoder
        self.source_lengths, self.lengths = source_lengths, lengths
        """Lengths of the sequences; the separator counts in both this and ``source_lengths``."""

    @property
    def complete(self) -> bool:
        """Return whether the separator of the single sequence has arrived."""
        return 0 < int(self.source_lengths[0]) <= int(self.lengths[0])

    def can_rewind_to(self, row: int, length: int) -> bool:
        """Return ``True``: a source that is cut is encoded again."""
        return True

    def rows(self, first: int, last: int) -> "SourceCache":
        """Return sequences ``first`` to ``last`` − 1 as a view of the same memory."""
        some = slice(first, last)
        return SourceCache(
            self.tokens[some],
            self.memories[:, :, some],
            self.decoder.rows(first, last),
            self.source_lengths[some],
            self.lengths[some],
        )

    def copy_row(self, source: int, target: int, length: int | None = None) -> None:
        """Copy sequence ``source`` to ``target``, or only its first ``length`` tokens."""
        for held in (self.tokens, self.source_lengths):
            held[target] = held[source]
        self.memories[:, :, target] = self.memories[:, :, source]
        self.decoder.copy_row(source, target)
        self.lengths[target] = self.lengths[source] if length is None else length

    def reorder(self, sources: Sequence[int]) -> None:
        """Replace sequence i by sequence ``sources[i]``, all at once; later sequences stay."""
        chosen = list(sources)
        for held in (self.tokens, self.source_lengths, self.lengths):
            held[: len(chosen)] = held[chosen]
        self.memories[:, :, : len(chosen)] = self.memories[:, :, chosen]
        self.decoder.reorder(chosen)

    def clear(self) -> None:
        """Remove all tokens but keep the memory, with its used part set to 0."""
        self.memories[..., : int(self.lengths.max()) + 1, :] = 0
        self.source_lengths.zero_()
        self.lengths.zero_()
        self.decoder.clear()

    def repeated(self, batch_size: int, capacity: int) -> "SourceCache":
        """Return a cache for ``batch_size`` copies of the single sequence of this one."""
        more = capacity - self.tokens.shape[1]
        memories = nn.functional.pad(self.memories, (0, 0, 0, max(more, 0)))
        return SourceCache(
            nn.functional.pad(self.tokens, (0, max(more, 0))).repeat(batch_size, 1),
            memories.repeat(1, 1, batch_size, 1, 1, 1),
            self.decoder.repeated(batch_size, max(capacity, self.tokens.shape[1])),
            self.source_lengths.repeat(batch_size),
            self.lengths.repeat(batch_size),
        )
