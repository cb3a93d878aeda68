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
from wholegpt.errors import ConfigError, DataError
from wholegpt.runtime import mix_seed
from wholegpt.settings.choices import Documents
from wholegpt.settings.schema import Config, TrainingConfig, WindowsConfig


@dataclass(frozen=True)
class Batch:
    """Inputs and what they should predict (teacher forcing)."""

    token_ids: Int[Tensor, "B T"]
    targets: Int[Tensor, "B T"]
    """The token after each position, or ``losses.IGNORED``."""
    documents: Int[Tensor, "B T"] | None = None
    """Number of the document that each input is in, where documents do not see each other."""

    def __len__(self) -> int:
        return len(self.token_ids)

    def rows(self, start: int, end: int) -> "Batch":
        """Windows ``start`` to ``end``: a micro-batch."""
        documents = None if self.documents is None else self.documents[start:end]
        return Batch(self.token_ids[start:end], self.targets[start:end], documents)

    def to(self, device: torch.device) -> "Batch":
        """The batch on ``device``."""
        moved = [
            None if part is None else part.to(device, non_blocking=True)
            for part in (self.token_ids, self.targets, self.documents)
        ]
        assert moved[0] is not None and moved[1] is not None
        return Batch(moved[0], moved[1], moved[2])


@dataclass(frozen=True)
class _Stretch:
    """Tokens that are cut into windows, the same number in every epoch."""

    start: int
    tokens: int
    context_length: int
    stride: int

    @property
    def windows_per_epoch(self) -> int:
        return max(1, (self.tokens - self.context_length) // self.stride)

    def starts(self, places: np.ndarray, seed: int, *names: int) -> np.ndarray:
        """First token of the windows at ``places`` in the endless order that ``seed`` and ``names`` give."""
        per_epoch = self.windows_per_epoch
        left = self.tokens - self.context_length - 1 - (per_epoch - 1) * self.stride
        epochs, indices = np.divmod(places, per_epoch)
        starts = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            key = mix_seed(seed, int(epoch), *names)
            offset = key % (min(self.stride - 1, left) + 1)
            starts[here] = self.start + offset + permute(indices[here], per_epoch, key) * self.stride
        return starts


class WindowLoader:
    """Shuffled windows of τ+1 tokens over a token sequence, forever.

    Each epoch cuts the text anew, from an offset of its own, and permutes its windows; every window
    comes exactly once an epoch. With weights, each source does so by itself, and the windows of all are interleaved.
    A batch is a function of (seed, step) alone, so those two integers are the loader's whole state, nothing needs to
    be replayed on resume, and any thread or process can make any batch.
    """

    def __init__(
        self,
        tokens: TokenShards,
        context_length: int,
        training: TrainingConfig,
        seed: int,
        windows: WindowsConfig = WindowsConfig(),
        end_of_text: int = -1,
        source_tokens: Sequence[int] = (),
    ) -> None:
        """``source_tokens`` are how many of the tokens each source has, needed with ``windows.weights``."""
        self.tokens, self.context_length = tokens, context_length
        self.training, self.seed, self.windows, self.end_of_text = training, seed, windows, end_of_text
        sizes = list(source_tokens) if windows.weights else [len(tokens)]
        if windows.weights and len(windows.weights) != len(sizes):
            raise ConfigError(
                f"windows.weights has {len(windows.weights)} numbers; expected one for each source, {len(sizes)}"
            )
        starts = np.cumsum([0, *sizes]).tolist()
        stride = windows.stride or context_length
        self._stretches = [
            _Stretch(start, size, context_length, stride) for start, size in zip(starts, sizes, strict=False)
        ]
        self._weights = windows.weights or (1.0,)
        for number, stretch in enumerate(self._stretches):
            if self._weights[number] and stretch.tokens <= context_length:
                part = f"source {number + 1}" if windows.weights else "the training text"
                raise DataError(
                    f"{part} has {stretch.tokens:,} tokens, fewer than one window of "
                    f"{context_length + 1:,}; give more text, or a smaller --model.context-length"
                )
        used = [one for one, weight in zip(self._stretches, self._weights, strict=True) if weight]
        self.windows_per_epoch = sum(stretch.windows_per_epoch for stretch in used)
        self.windows_per_pass = sum(replace(one, stride=context_length).windows_per_epoch for one in used)
        """Windows that hold as many tokens as the text, whatever the stride."""

    def batch(self, step: int, rank: int = 0, ranks: int = 1) -> Batch:
        """The windows of optimiser step ``step`` (from 0); of several ``ranks``, those of one, in order."""
        whole = np.arange(windows_before(step, self.training), windows_before(step + 1, self.training))
        places = np.array_split(whole, ranks)[rank]
        starts = self.window_starts(places)
        length = self.context_length
        windows = np.empty((len(places), length + 1), dtype=np.int64)
        for row, start in enumerate(starts):
            windows[row] = self.tokens.read(int(start), length + 1)
        pieces = self._pieces(step)
        inputs, targets, documents = (
            None if part is None else torch.from_numpy(part.reshape(len(places) * pieces, length // pieces))
            for part in (windows[:, :-1], windows[:, 1:], self._documents(windows[:, :-1], places))
        )
        assert inputs is not None and targets is not None
        return Batch(inputs, targets, documents)

    def window_starts(self, places: np.ndarray) -> np.ndarray:
        """First token of the windows at ``places`` in the endless order, shape as ``places``."""
        if not self.windows.weights:
            return self._stretches[0].starts(places, self.seed)
        sources, within = interleave(places, self._weights)
        starts = np.empty_like(places)
        for source in np.unique(sources):
            here = sources == source
            starts[here] = self._stretches[source].starts(within[here], self.seed, int(source))
        return starts

    def _documents(self, inputs: Int[np.ndarray, "B T"], places: np.ndarray) -> Int[np.ndarray, "B T"] | None:
        """The number of the document of each input, or of the part of a window that is cut at random."""
        if self.windows.documents is Documents.joined and not self.windows.truncation:
            return None
        numbers = np.zeros(inputs.shape, dtype=np.int64)
        if self.windows.documents is Documents.separate:
            numbers += document_numbers(inputs, self.end_of_text)
        chosen = uniform(places, mix_seed(self.seed, 1)) < self.windows.truncation
        cuts = 1 + (uniform(places, mix_seed(self.seed, 2)) * (self.context_length - 1)).astype(np.int64)
        return numbers + (chosen[:, None] & (np.arange(self.context_length) >= cuts[:, None]))

    def _pieces(self, step: int) -> int:
        """Into how many sequences each window of a step is cut: 1, 2, 4 and so on, each as likely."""
        halvings = (self.context_length // (self.windows.min_length or self.context_length)).bit_length()
        return 2 ** (mix_seed(self.seed, step, 3) % halvings)


def make_loader(data: PreparedData, config: Config) -> WindowLoader:
    """The windows of the training side of ``data`` that ``config`` asks for."""
    return WindowLoader(
        data.train,
        config.model.context_length,
        config.training,
        config.runtime.seed,
        config.windows,
        data.tokenizer.end_of_text_id,
        data.manifest.train.source_tokens,
    )


def document_numbers(token_ids: Int[np.ndarray, "*B T"], end_of_text: int) -> Int[np.ndarray, "*B T"]:
    """The number of the document that each token is in; end-of-text begins one, the token before only predicts it."""
    return (token_ids == end_of_text).cumsum(axis=-1)


def windows_before(step: int, training: TrainingConfig) -> int:
    """Windows of all optimiser steps before ``step``.

    The batch has ``batch_size`` windows; where ``initial_batch_size`` is set, the first has that many, and
    each of the first ``batch_growth_steps`` steps as many as an even rise gives.
    """
    first, growth = training.initial_batch_size or training.batch_size, training.batch_growth_steps
    growing = min(step, growth)
    rise = (training.batch_size - first) * growing * (growing - 1) // (2 * growth) if growth else 0
    return growing * first + rise + (step - growing) * training.batch_size
