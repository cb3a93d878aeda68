"""One token more of each sequence in one compiled call: no Python between its operations.

Shapes: B sequences that go on, R sequences that the cache has room for, T tokens, N places, V vocabulary.
"""

import contextlib
import hashlib
import io
import time
import warnings
import weakref
from collections.abc import Callable
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from wholegpt.console import Console
from wholegpt.errors import ConfigError
from wholegpt.model.base import TokenModel
from wholegpt.model.cache import KeyValueCache
from wholegpt.model.layers.attention import SequenceContext
from wholegpt.model.transformer import Transformer
from wholegpt.runtime import COMPILER_ERRORS, separate_compiled_code
from wholegpt.settings.validation import RECURRENT

CAPACITY_UNIT = 256
"""Caches have room for a multiple of so many positions, so that one compiled step serves texts of different lengths."""
MOST_SHAPES = 64
"""Caches of different sizes that steps are compiled for in one process."""
FOR_CPU = {"freezing": True, "max_autotune": True, "max_autotune_gemm_backends": "CPP,ATEN"}
"""Weights are constants; for each product the fastest of several kernels is chosen by trying them."""
FOR_GPU = {"triton.cudagraphs": True}
"""The kernels of a step are launched as one graph."""


class CompiledTransformer(TokenModel):
    """A transformer whose steps of one token are compiled by PyTorch (``torch.compile``), once for each size of cache.

    Every step is of all R sequences that the cache has room for, and attends to its whole capacity, so that no shape
    changes from token to token; longer pieces are read by the model itself. The logits are the model's but for their
    last bits: fused operations round in other places.
    """

    def __init__(
        self, model: TokenModel, console: Console, compiler: Callable[..., Any] = torch.compile
    ) -> None:
        """Raises ``ConfigError`` for a kind of model whose steps have no fixed shapes."""
        if not compilable(model):
            raise ConfigError(
                "execution is compiled, which is for transformers with softmax attention and without experts; "
                "leave it out"
            )
        super().__init__(model.config)
        self.model, self._console = model, console
        self._step = compiler(step, fullgraph=True, dynamic=False)
        self._compiled_for: set[tuple[torch.Size, int]] = set()
        """Shapes of caches, and numbers of threads."""
        self._kept: tuple[Tensor, Tensor, weakref.ref[KeyValueCache]] | None = None
        """The keys and values of the last cache, and who uses them."""
        self.compiling_seconds = 0.0
        """What its first steps took."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def ends_at_context(self) -> bool:
        """Whether there are no more than τ positions."""
        return self.model.ends_at_context

    def forward(self, token_ids: Int[Tensor, "B T"], cache: Any = None) -> Float[Tensor, "B T V"]:
        """Logits of the token after each position; of one token more of each sequence by the compiled step."""
        if cache is None or token_ids.shape[1] > 1:
            return self.model(token_ids, cache)
        whole: KeyValueCache = cache.whole
        padded = F.pad(token_ids, (0, 0, 0, len(whole.lengths) - len(token_ids)))
        inputs = self.model, padded, *whole.reserve_at_lengths(), whole
        kind = whole.keys.shape, torch.get_num_threads()
        logits = self._step(*inputs) if kind in self._compiled_for else self._first_step(*inputs)
        self._compiled_for.add(kind)
        cache.advance(1)
        return logits[: len(token_ids)].clone()  # the next step may write where these stand

    def _first_step(self, *inputs: Any) -> Float[Tensor, "R 1 V"]:
        """A step with caches of a new shape, for which it is compiled; where that fails it stays as it is."""
        from torch._dynamo import config as tracing
        from torch._inductor import config as compiling  # which take a second to import

        separate_compiled_code()
        options = FOR_CPU if self.device.type == "cpu" else FOR_GPU
        # Weights become constants of the code, of which PyTorch's cache does not compare all: not those in 8 bits.
        caching: Any = torch.compiler.config
        tag = f"{caching.cache_key_tag}-{fingerprint(self.model)}"
        started = time.perf_counter()
        try:
            with (
                compiling.patch({**options, "autotune_num_choices_displayed": 0}),
                caching.patch(cache_key_tag=tag),
                tracing.patch(recompile_limit=MOST_SHAPES),
                warnings.catch_warnings(action="ignore"),
                contextlib.redirect_stderr(io.StringIO()),  # where the compiler writes, whatever its settings
            ):
                return self._step(*inputs)
        except COMPILER_ERRORS as error:
            problem = str(error).strip().splitlines()[0]
            self._console.warn(f"the step cannot be compiled ({problem}); it runs operation by operation")
            self._step = step
            return step(*inputs)
        finally:
            self.compiling_seconds += time.perf_counter() - started

    def logits_at(
        self, token_ids: Int[Tensor, "B T"], places: Bool[Tensor, "B T"], cache: Any = None
    ) -> Float[Tensor, "N V"]:
        """The logits of ``forward`` at some ``places`` only."""
        return self.model.logits_at(token_ids, places, cache)

    def read(self, token_ids: Int[Tensor, "B T"], cache: Any) -> None:
        """Extend ``cache`` by T positions whose logits nobody needs."""
        self.model.read(token_ids, cache)

    def new_cache(self, batch_size: int, capacity: int = 0) -> KeyValueCache:
        """The model's, of a size that others have too; in the memory of the last one where nobody uses that any more.

        The place of that memory is part of what is compiled for a GPU.
        """
        capacity = self._rounded(capacity)
        keys, values, user = self._kept or (torch.empty(0), torch.empty(0), lambda: None)
        if keys.shape == KeyValueCache.shape(self.config, batch_size, capacity) and user() is None:
            cache = KeyValueCache(keys, values, torch.zeros(batch_size, dtype=torch.long), self.config)
        else:
            cache = self.model.new_cache(batch_size, capacity)
        assert isinstance(cache, KeyValueCache)
        if self.device.type != "cpu":
            from torch._dynamo import mark_static_address

            for tensor in cache.layers():
                mark_static_address(tensor)
        self._kept = cache.keys, cache.values, weakref.ref(cache)
        return cache

    def cache_bytes(self, batch_size: int, capacity: int) -> int:
        """Bytes of such a cache."""
        return self.model.cache_bytes(batch_size, self._rounded(capacity))

    def _rounded(self, capacity: int) -> int:
        wanted = capacity or self.context_length
        return min(-(-wanted // CAPACITY_UNIT) * CAPACITY_UNIT, max(wanted, self.context_length))


def fingerprint(model: TokenModel) -> str:
    """A hash of all tensors of a model, those that are laid out for a kernel among them, which are no parameters."""
    found = hashlib.sha256()
    for name, module in model.named_modules():
        own = {
            **vars(module),
            **dict(module.named_parameters(recurse=False)),
            **dict(module.named_buffers(recurse=False)),
        }
        for key, tensor in own.items():
            if isinstance(tensor, Tensor):
                plain = tensor.detach().to_dense() if tensor.is_mkldnn else tensor.detach().cpu()
                found.update(f"{name}.{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
                found.update(plain.contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def compilable(model: TokenModel) -> TypeGuard[Transformer]:
    """Whether the steps of a model can have fixed shapes."""
    writes = type(model) is Transformer  # and no encoder, which is one too
    return writes and model.config.attention not in RECURRENT and not model.config.n_experts


def step(
    model: Transformer,
    token_ids: Int[Tensor, "R 1"],
    positions: Int[Tensor, "R 1"],
    visible: Bool[Tensor, "R 1 1 S"],
    cache: KeyValueCache,
) -> Float[Tensor, "R 1 V"]:
    """``Transformer.forward`` of one token of each sequence, for which ``cache`` is ready."""
    stream = model.embedded(token_ids, positions)
    context = SequenceContext(visible, model.rotation(positions, stream), cache)
    return model.logits_of(model.through_blocks(stream, context))
