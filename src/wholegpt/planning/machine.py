"""Speed of a machine, measured or described, and the duration of a training step on it."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from wholegpt import runtime
from wholegpt.errors import ConfigError
from wholegpt.model import flops_per_token, parameter_count, saved_activations
from wholegpt.settings.choices import Dtype, OptimizerKind
from wholegpt.settings.schema import Config
from wholegpt.training.muon import ITERATIONS

PROBE_SIZE = 2048
PROBE_SECONDS = 0.5
ACTIVATION_COPIES = 44.0
"""The work of a step outside its matrix products takes as long as copying each saved activation so often."""
OPTIMIZER_ACCESSES = 12.0
"""How often clipping and the optimizer read or write each parameter, gradient or moment, in float32."""

FORWARD_SHARE = 3.0
"""Speed of a forward pass in tokens per second, relative to training."""
SAMPLE_TOKENS_PER_SECOND = 100.0
"""Assumed for a machine that is only described: about the cost of Python per token."""


@dataclass(frozen=True)
class Machine:
    """The properties that limit training speed. Raises ``ConfigError`` for impossible values."""

    flops: float
    """FLOP/s of a large matrix product in the dtype of training."""
    bandwidth: float
    """Bytes per second between processor and memory."""
    memory: float = math.inf
    """Bytes available for training."""

    def __post_init__(self) -> None:
        for name, value, least in (("flops", self.flops, 1e6), ("bandwidth", self.bandwidth, 1e6)):
            if not value >= least:
                raise ConfigError(f"the machine's {name} is {value:g}; expected at least {least:g} a second")
        if not self.memory > 0:
            raise ConfigError(f"the machine's memory is {self.memory:g} bytes; expected more than 0")


def probe(device: torch.device, dtype: Dtype) -> Machine:
    """Measure ``device`` for about a second: a square product of size 2,048 and a copy of 128 MB, the best of
    each.
    """
    a = torch.randn(PROBE_SIZE, PROBE_SIZE, device=device).to(runtime.torch_dtype(dtype))
    source = torch.zeros(2**25, device=device)
    target = torch.empty_like(source)
    product = _best_seconds(lambda: a @ a, device)
    copy = _best_seconds(lambda: target.copy_(source), device)
    return Machine(2 * PROBE_SIZE**3 / product, 2 * source.nbytes / copy)


def _best_seconds(work: Callable[[], object], device: torch.device) -> float:
    best, until = float("inf"), time.perf_counter() + PROBE_SECONDS
    while time.perf_counter() < until:
        started = time.perf_counter()
        work()
        runtime.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return best


def step_seconds(config: Config, machine: Machine) -> float:
    """Compute the seconds of an optimizer step: products at the machine's FLOP/s, other work at its
    bandwidth.

    (3·F·n + 30·D·N_b) / flops + (44·s·a·n + 48·N) / bandwidth for n tokens per step, F forward FLOPs per
    token, a saved activations of s bytes per token (two for each logit), and N parameters, N_b of them in the
    blocks. Muon takes 2·(1 + 1 + 1)·D FLOPs per parameter of their square matrices and iteration. The 44 is
    fitted to widths from 64 to 512 on two cores (docs/decisions.md). ``config`` must be resolved.
    """
    model, training = config.model, config.training
    tokens = training.batch_size * config.window_length
    products = 3 * flops_per_token(model) * tokens
    if config.optimizer.kind is OptimizerKind.muon:
        products += ITERATIONS * 6 * model.d_model * parameter_count(model).blocks
    size = 4 if config.precision.dtype is Dtype.float32 else 2
    kept = tokens * (saved_activations(model, config.precision.attention) + 2 * model.vocab_size)
    moved = ACTIVATION_COPIES * size * kept + OPTIMIZER_ACCESSES * 4 * parameter_count(model).total
    return products / machine.flops + moved / machine.bandwidth


@dataclass(frozen=True)
class Rates:
    """Speed of training, evaluation and generation of a model."""

    step_seconds: float
    validation_tokens_per_second: float
    sample_tokens_per_second: float
    start_seconds: float = 0.0
    """Additional time of the first steps: allocating memory, choosing kernels, compiling."""


class Speeds:
    """Rates of any size on a machine: measured, or extrapolated from the nearest measured width."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._measured: dict[tuple[int, int, bool], tuple[Config, Rates]] = {}

    def add(self, config: Config, rates: Rates) -> None:
        """Record the measured ``rates`` of ``config``."""
        self._measured[_kind(config)] = (config, rates)

    def has(self, config: Config) -> bool:
        """Return whether the size of ``config`` was measured, with or without dropout as in ``config``."""
        return _kind(config) in self._measured

    def __call__(self, config: Config) -> Rates:
        """Return the rates of ``config``: computed from the machine's properties, and corrected by
        measurements.
        """
        here = self._measured.get(_kind(config))
        if here:
            return here[1]
        predicted = step_seconds(config, self.machine)
        tokens = config.training.batch_size * config.window_length
        if not self._measured:
            return Rates(predicted, FORWARD_SHARE * tokens / predicted, SAMPLE_TOKENS_PER_SECOND)
        known, rates = min(
            self._measured.values(),
            key=lambda pair: abs(math.log(pair[0].model.d_model / config.model.d_model)),
        )
        slower = predicted / step_seconds(known, self.machine)
        return Rates(
            rates.step_seconds * slower,
            rates.validation_tokens_per_second
            * tokens
            / (known.training.batch_size * known.window_length)
            / slower,
            rates.sample_tokens_per_second * known.model.n_layers / config.model.n_layers,
            rates.start_seconds,
        )


def _kind(config: Config) -> tuple[int, int, bool]:
    return config.model.d_model, config.training.batch_size, config.model.dropout > 0
