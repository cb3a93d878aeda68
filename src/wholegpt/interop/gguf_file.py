"""Reading of GGUF files of llama.cpp, quantized or not, with the ``gguf`` library."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wholegpt.errors import CheckpointError
from wholegpt.interop.architectures import GPT2
from wholegpt.interop.foreign import ForeignTensors, completed, number_in, shortest, whole_number_in
from wholegpt.interop.gguf_architectures import GGUF_ARCHITECTURES, GgufArchitecture
from wholegpt.interop.gguf_rotary import FREQUENCY_FACTORS, linear_scaling, with_llama3_scaling
from wholegpt.settings.choices import Embeddings
from wholegpt.settings.schema import ModelConfig

_SIZES = {
    "context_length": "context_length",
    "n_layers": "block_count",
    "d_model": "embedding_length",
    "d_ff": "feed_forward_length",
    "n_heads": "attention.head_count",
}
"""Our field -> theirs, without the name of the architecture before it; all are required."""
_FIXED: dict[str, tuple[object, ...]] = {
    "rope.scaling.type": ("none", "linear"),
    "expert_count": (0,),
    "attention.causal": (True,),
}
"""Their fields that change the computation, with the only supported values."""


class GgufFile:
    """An open GGUF file: its metadata and its tensors."""

    def __init__(self, path: Path) -> None:
        """Raise ``CheckpointError`` for a file that cannot be read, or that is one of several parts."""
        import gguf

        self.path = path
        try:
            reader = gguf.GGUFReader(path)
            self.metadata: dict[str, Any] = {
                name: field.contents()
                for name, field in reader.fields.items()
                if not name.startswith("GGUF.")
            }
            self.stored = {tensor.name: tensor for tensor in reader.tensors}
        except Exception as error:  # a damaged file may raise anything
            raise CheckpointError(
                f"{path}: cannot be read as GGUF: {type(error).__name__}: {error}"
            ) from None
        if (parts := self.metadata.get("split.count", 1)) != 1:
            raise CheckpointError(
                f"{path}: is one of {parts} parts; merge them first with llama.cpp's `llama-gguf-split --merge`"
            )

    def read(self) -> tuple[ModelConfig, dict[str, Tensor]]:
        """Return the config of the model, and its tensors under our names, dequantized to float32.

        Raises ``CheckpointError`` naming whatever is missing, damaged or not supported.
        """
        architecture = self._architecture()
        config = self._config(architecture)
        shapes = {name: tuple(int(n) for n in reversed(one.shape)) for name, one in self.stored.items()}
        if architecture.frequency_factors:
            shapes.pop(FREQUENCY_FACTORS, None)  # part of the config

        def one(name: str) -> Tensor:
            return architecture.reordered(name, self._dequantized(name), config, back=True)

        return config, ForeignTensors(self.path, shapes, one).into_ours(architecture.table, config)

    def _architecture(self) -> GgufArchitecture:
        found = self.metadata.get("general.architecture")
        for one in GGUF_ARCHITECTURES:
            if one.name == found:
                return one
        known = ", ".join(one.name for one in GGUF_ARCHITECTURES)
        raise CheckpointError(
            f"{self.path}: general.architecture is {found!r}; the supported architectures are {known}"
        )

    def _config(self, architecture: GgufArchitecture) -> ModelConfig:
        prefix, path = f"{architecture.name}.", self.path
        content = {
            name.removeprefix(prefix): value
            for name, value in self.metadata.items()
            if name.startswith(prefix)
        }
        for field, supported in _FIXED.items():
            if content.get(field, supported[0]) not in supported:
                raise CheckpointError(
                    f"{path}: {prefix}{field} is {content[field]!r}; only models in which it is "
                    f"{' or '.join(map(repr, supported))} can be imported"
                )
        embedding = self.stored.get("token_embd.weight")
        if embedding is None or len(embedding.shape) != 2:
            raise CheckpointError(f"{path}: does not hold the matrix token_embd.weight")
        changes: dict[str, Any] = {
            ours: whole_number_in(content, theirs, path) for ours, theirs in _SIZES.items()
        }
        changes["vocab_size"] = int(embedding.shape[1])
        changes["embeddings"] = Embeddings.untied if "output.weight" in self.stored else Embeddings.tied
        changes["dropout"] = 0.0
        if architecture.published is GPT2:
            changes["norm_epsilon"] = shortest(number_in(content, "attention.layer_norm_epsilon", path))
            return completed(GPT2.base, changes, path)
        changes["norm_epsilon"] = shortest(number_in(content, "attention.layer_norm_rms_epsilon", path))
        changes["n_kv_heads"] = number_in(content, "attention.head_count_kv", path, changes["n_heads"])
        width = number_in(
            content, "attention.key_length", path, changes["d_model"] // max(1, changes["n_heads"])
        )
        for field in ("attention.value_length", "rope.dimension_count"):
            if content.get(field, width) != width:
                raise CheckpointError(
                    f"{path}: {prefix}{field} is {content[field]!r}; only models in which it is the width of a head, "
                    f"{width}, can be imported"
                )
        changes["d_head"] = width
        changes["rotary_base"] = shortest(number_in(content, "rope.freq_base", path, 10_000.0))
        changes |= linear_scaling(content, path)
        window = content.get("attention.sliding_window")
        if window is not None and window < changes["context_length"]:
            raise CheckpointError(
                f"{path}: {prefix}attention.sliding_window is {window!r}, less than the context of "
                f"{changes['context_length']:,} tokens; only attention to the whole context is supported"
            )
        config = completed(architecture.published.base, changes, path)
        if architecture.frequency_factors and FREQUENCY_FACTORS in self.stored:
            return with_llama3_scaling(config, self._dequantized(FREQUENCY_FACTORS), content, path)
        return config

    def _dequantized(self, name: str) -> Tensor:
        import gguf

        stored = self.stored[name]
        try:
            values = gguf.quants.dequantize(stored.data, stored.tensor_type)
        except NotImplementedError:
            raise CheckpointError(
                f"{self.path}: {name} is stored as {stored.tensor_type.name}, which is not supported"
            ) from None
        return torch.from_numpy(values.copy())
