"""Windows of tokens in an order that depends only on the seed and the step.

Shapes: B windows in a batch, T positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from wholegpt.data.permutation import interleave, permute, uniform
from wholegpt.data.text.shards import PreparedData, TokenShards
from wholegpt.errors import ConfigError, DataError, counted
from wholegpt.runtime import mix_seed
from wholegpt.settings.choices import Documents
from wholegpt.settings.schema import Config, TrainingConfig, WindowsConfig


@dataclass(frozen=True)
class Batch:
    """Inputs and their targets (teacher forcing)."""

    token_ids: Int[Tensor, "B T"]
    targets: Int[Tensor, "B T"]
    """The token after each position, or ``losses.IGNORED``."""
    documents: Int[Tensor, "B T"] | None = None
    """Document index of each input, if documents do not see each other."""

    def __len__(self) -> int:
        return len(self.token_ids)

    def rows(self, start: int, end: int) -> "Batch":
        """Return windows ``start`` to ``end``: a micro-batch."""
        documents = None if self.documents is None else self.documents[start:end]
        return Batch(self.token_ids[start:end], self.targets[start:end], documents)

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on ``device``."""
        moved = [
            None if part is None else part.to(device, non_blocking=True)
            for part in (self.token_ids, self.targets, self.documents)
        ]
        assert moved[0] is not None and moved[1] is not None
        return Batch(moved[0], moved[1], moved[2])


@dataclass(frozen=True)
class _TokenRange:
    """A range of tokens that is cut into the same number of windows in every epoch."""

    start: int
    tokens: int
    length: int
    stride: int

    @property
    def windows_per_epoch(self) -> int:
        return max(1, (self.tokens - self.length) // self.stride)

    def starts(self, indices: np.ndarray, seed: int, *names: int) -> np.ndarray:
        """Return the first token of the windows at ``indices`` in the endless order given by ``seed`` and
        ``names``.
        """
        per_epoch = self.windows_per_epoch
        left = self.tokens - self.length - 1 - (per_epoch - 1) * self.stride
        epochs, indices = np.divmod(indices, per_epoch)
        starts = np.empty_like(indices)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            key = mix_seed(seed, int(epoch), *names)
            offset = key % (min(self.stride - 1, left) + 1)
            starts[here] = self.start + offset + permute(indices[here], per_epoch, key) * self.stride
        return starts


class WindowLoader:
    """Shuffled windows of τ+1 tokens over a token sequence, forever.

    Each epoch cuts the text at a new offset and permutes its windows; every window occurs exactly once per
    epoch. With weights, each source has its own epochs, and the windows of all sources are interleaved. A
    batch is a function of (seed, step), so these two integers are the loader's whole state: resuming replays
    nothing, and any thread or process can create any batch.
    """

    def __init__(
        self,
        tokens: TokenShards,
        length: int,
        training: TrainingConfig,
        seed: int,
        windows: WindowsConfig = WindowsConfig(),
        end_of_text: int = -1,
        source_tokens: Sequence[int] = (),
    ) -> None:
        """Set up the loader. ``source_tokens``, the number of tokens of each source, is required with
        ``windows.weights``.
        """
        self.tokens, self.length = tokens, length
        self.training, self.seed, self.windows, self.end_of_text = training, seed, windows, end_of_text
        sizes = list(source_tokens) if windows.weights else [len(tokens)]
        if windows.weights and len(windows.weights) != len(sizes):
            raise ConfigError(
                f"windows.weights has {len(windows.weights)} numbers; expected one for each source, {len(sizes)}"
            )
        starts = np.cumsum([0, *sizes]).tolist()
        stride = windows.stride or length
        self._ranges = [
            _TokenRange(start, size, length, stride) for start, size in zip(starts, sizes, strict=False)
        ]
        self._weights = windows.weights or (1.0,)
        for number, token_range in enumerate(self._ranges):
            if self._weights[number] and token_range.tokens <= length:
                part = f"source {number + 1}" if windows.weights else "the training text"
                raise DataError(
                    f"{part} has {counted(token_range.tokens, 'tokens')}, fewer than one window of "
                    f"{length + 1:,}; give more text, or shorter windows (--windows.length, or "
                    "--model.context-length of a new model)"
                )
        used = [one for one, weight in zip(self._ranges, self._weights, strict=True) if weight]
        self.windows_per_epoch = sum(token_range.windows_per_epoch for token_range in used)
        self.windows_per_text = sum(replace(one, stride=length).windows_per_epoch for one in used)
        """Windows that hold as many tokens as the text, whatever the stride."""

    def batch(self, step: int, rank: int = 0, ranks: int = 1) -> Batch:
        """Return the windows of optimizer step ``step`` (from 0); with several ``ranks``, those of one rank,
        in order.
        """
        whole = np.arange(windows_before(step, self.training), windows_before(step + 1, self.training))
        indices = np.array_split(whole, ranks)[rank]
        starts = self.window_starts(indices)
        length = self.length
        windows = np.empty((len(indices), length + 1), dtype=np.int64)
        for row, start in enumerate(starts):
            windows[row] = self.tokens.read(int(start), length + 1)
        pieces = self._pieces(step)
        inputs, targets, documents = (
            None if part is None else torch.from_numpy(part.reshape(len(indices) * pieces, length // pieces))
            for part in (windows[:, :-1], windows[:, 1:], self._documents(windows[:, :-1], indices))
        )
        assert inputs is not None and targets is not None
        return Batch(inputs, targets, documents)

    def window_starts(self, indices: np.ndarray) -> np.ndarray:
        """Return the first token of the windows at ``indices`` in the endless order, shaped like ``indices``."""
        if not self.windows.weights:
            return self._ranges[0].starts(indices, self.seed)
        sources, within = interleave(indices, self._weights)
        starts = np.empty_like(indices)
        for source in np.unique(sources):
            here = sources == source
            starts[here] = self._ranges[source].starts(within[here], self.seed, int(source))
        return starts

    def _documents(
        self, inputs: Int[np.ndarray, "B T"], indices: np.ndarray
    ) -> Int[np.ndarray, "B T"] | None:
        """Return the document index of each input, or of the part of a window that is cut at random."""
        if self.windows.documents is Documents.joined and not self.windows.truncation:
            return None
        numbers = np.zeros(inputs.shape, dtype=np.int64)
        if self.windows.documents is Documents.separate:
            numbers += document_numbers(inputs, self.end_of_text)
        chosen = uniform(indices, mix_seed(self.seed, 1)) < self.windows.truncation
        cuts = 1 + (uniform(indices, mix_seed(self.seed, 2)) * (self.length - 1)).astype(np.int64)
        return numbers + (chosen[:, None] & (np.arange(self.length) >= cuts[:, None]))

    def _pieces(self, step: int) -> int:
        """Return the number of sequences that each window of a step is cut into: 1, 2, 4 and so on, equally likely."""
        halvings = (self.length // (self.windows.min_length or self.length)).bit_length()
        return 2 ** (mix_seed(self.seed, step, 3) % halvings)


def make_loader(data: PreparedData, config: Config) -> WindowLoader:
    """Return the loader of the training split of ``data`` with the settings of ``config``."""
    return WindowLoader(
        data.train,
        config.window_length,
        config.training,
        config.runtime.seed,
        config.windows,
        data.tokenizer.end_of_text_id,
        data.manifest.train.source_tokens,
    )


def document_numbers(token_ids: Int[np.ndarray, "*B T"], end_of_text: int) -> Int[np.ndarray, "*B T"]:
    """Return the document index of each token.

    End-of-text starts a document; the token before it only predicts it.
    """
    return (token_ids == end_of_text).cumsum(axis=-1)


def windows_before(step: int, training: TrainingConfig) -> int:
    """Return the number of windows in all optimizer steps before ``step``.

    The batch has ``batch_size`` windows. If ``initial_batch_size`` is set, the first batch has that many, and
    the size grows linearly over the first ``batch_growth_steps`` steps.
    """
    first, growth = training.initial_batch_size or training.batch_size, training.batch_growth_steps
    growing = min(step, growth)
    rise = (training.batch_size - first) * growing * (growing - 1) // (2 * growth) if growth else 0
    return growing * first + rise + (step - growing) * training.batch_size
