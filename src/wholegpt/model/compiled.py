"""Decode one token per sequence in one compiled call, without Python between the operations.

Shapes: B active sequences, R sequences that the cache has room for, T tokens, N selected positions, V
vocabulary.
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
from wholegpt.model.layers.attention import SequenceContext
from wholegpt.model.layers.cache import KeyValueCache
from wholegpt.model.transformer import Transformer
from wholegpt.runtime import COMPILER_ERRORS, separate_compiled_code
from wholegpt.settings.validation import RECURRENT

CAPACITY_UNIT = 256
"""Capacities of caches are multiples of this, so that one compiled step serves texts of different lengths."""
MOST_SHAPES = 64
"""Largest number of cache shapes that steps are compiled for in one process."""
FOR_CPU = {"freezing": True, "max_autotune": True, "max_autotune_gemm_backends": "CPP,ATEN"}
"""Treat weights as constants, and choose the fastest of several kernels for each product by timing them."""
FOR_GPU = {"triton.cudagraphs": True}
"""Launch the kernels of a step as one CUDA graph."""


class CompiledTransformer(TokenModel):
    """A transformer whose decoding steps are compiled by ``torch.compile``, once for each shape of cache.

    Every step computes all R sequences that the cache has room for and attends to its whole capacity, so that
    no shape changes from token to token. Longer inputs go through the model itself. The logits equal the
    model's up to rounding: fused operations round at other points.
    """

    def __init__(
        self, model: TokenModel, console: Console, compiler: Callable[..., Any] = torch.compile
    ) -> None:
        """Wrap ``model``. Raises ``ConfigError`` if its steps cannot have fixed shapes."""
        if not compilable(model):
            raise ConfigError(
                "execution is compiled, which is for transformers with softmax attention and without experts; "
                "leave it out"
            )
        super().__init__(model.config)
        self.model, self._console = model, console
        self._step = compiler(step, fullgraph=True, dynamic=False)
        self._compiled_for: set[tuple[torch.Size, int]] = set()
        """Compiled cases: the shape of the cache and the number of threads."""
        self._kept: tuple[Tensor, Tensor, weakref.ref[KeyValueCache]] | None = None
        """The keys and values of the last cache, and a weak reference to the cache that uses them."""
        self.compiling_seconds = 0.0
        """Time that compilation took."""

    @property
    def device(self) -> torch.device:
        """Return the device of the weights."""
        return self.model.device

    @property
    def ends_at_context(self) -> bool:
        """Return whether the model is limited to τ positions."""
        return self.model.ends_at_context

    def forward(self, token_ids: Int[Tensor, "B T"], cache: Any = None) -> Float[Tensor, "B T V"]:
        """Return the logits of the token after each position; a single token per sequence uses the compiled
        step.
        """
        if cache is None or token_ids.shape[1] > 1:
            return self.model(token_ids, cache)
        whole: KeyValueCache = cache.whole
        padded = F.pad(token_ids, (0, 0, 0, len(whole.lengths) - len(token_ids)))
        inputs = self.model, padded, *whole.reserve_at_lengths(), whole
        kind = whole.keys.shape, torch.get_num_threads()
        logits = self._step(*inputs) if kind in self._compiled_for else self._first_step(*inputs)
        self._compiled_for.add(kind)
        cache.advance(1)
        return logits[: len(token_ids)].clone()  # the next step may overwrite this memory

    def _first_step(self, *inputs: Any) -> Float[Tensor, "R 1 V"]:
        """Compile and run a step for caches of a new shape; if compilation fails, use the uncompiled step
        from now on.
        """
        from torch._dynamo import config as tracing
        from torch._inductor import config as compiling  # importing these takes a second

        separate_compiled_code()
        options = FOR_CPU if self.device.type == "cpu" else FOR_GPU
        # Weights become constants in the code. PyTorch's compile cache does not compare all of them: 8-bit
        # weights not.
        caching: Any = torch.compiler.config
        tag = f"{caching.cache_key_tag}-{fingerprint(self.model)}"
        started = time.perf_counter()
        try:
            with (
                compiling.patch({**options, "autotune_num_choices_displayed": 0}),
                caching.patch(cache_key_tag=tag),
                tracing.patch(recompile_limit=MOST_SHAPES),
                warnings.catch_warnings(action="ignore"),
                contextlib.redirect_stderr(io.StringIO()),  # the compiler writes here whatever its settings
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
        self, token_ids: Int[Tensor, "B T"], positions: Bool[Tensor, "B T"], cache: Any = None
    ) -> Float[Tensor, "N V"]:
        """Return the logits of ``forward`` at the selected ``positions`` only."""
        return self.model.logits_at(token_ids, positions, cache)

    def prefill(self, token_ids: Int[Tensor, "B T"], cache: Any) -> None:
        """Extend ``cache`` by T positions without computing their logits."""
        self.model.prefill(token_ids, cache)

    def new_cache(self, batch_size: int, capacity: int = 0) -> KeyValueCache:
        """Return a cache of rounded capacity, in the memory of the last one if that is no longer used.

        Code compiled for a GPU contains the address of that memory.
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
        """Return the bytes of a cache of this size."""
        return self.model.cache_bytes(batch_size, self._rounded(capacity))

    def _rounded(self, capacity: int) -> int:
        wanted = capacity or self.context_length
        return min(-(-wanted // CAPACITY_UNIT) * CAPACITY_UNIT, max(wanted, self.context_length))


def fingerprint(model: TokenModel) -> str:
    """Return a hash of all tensors of a model, including packed weights, which are no parameters."""
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
    """Return whether the decoding steps of a model can have fixed shapes."""
    is_decoder = type(model) is Transformer  # an encoder is a subclass
    return is_decoder and model.config.attention not in RECURRENT and not model.config.n_experts


def step(
    model: Transformer,
    token_ids: Int[Tensor, "R 1"],
    positions: Int[Tensor, "R 1"],
    visible: Bool[Tensor, "R 1 1 S"],
    cache: KeyValueCache,
) -> Float[Tensor, "R 1 V"]:
    """Run ``Transformer.forward`` for one token per sequence, whose positions are reserved in ``cache``."""
    stream = model.embedded(token_ids, positions)
    context = SequenceContext(visible, model.rotation(positions, stream), cache)
    return model.logits_of(model.through_blocks(stream, context))
