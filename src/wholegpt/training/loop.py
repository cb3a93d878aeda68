"""The one training loop of the project."""

import math
import time
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from wholegpt.errors import NumericsError
from wholegpt.model import Transformer
from wholegpt.runtime import compute_in, mix_seed, processes, separate_compiled_code
from wholegpt.settings.choices import Dtype
from wholegpt.settings.schema import Config
from wholegpt.training.events import Callbacks, StepMetrics
from wholegpt.training.objectives import Objective, Rows
from wholegpt.training.optimizers import set_learning_rate
from wholegpt.training.schedules import learning_rate
from wholegpt.training.state import TrainingState

NO_CALLBACKS = Callbacks(())


@runtime_checkable
class BatchSource(Protocol):
    """The batches of a run, as a function of the step, so that resuming replays nothing."""

    def batch(self, step: int) -> Rows:
        """Return the batch of optimizer step ``step`` (from 0)."""
        ...


Step = Callable[[TrainingState, Callbacks], StepMetrics]
"""One step of the loop, from the state before it."""


def train(step: Step, steps: int, state: TrainingState, callbacks: Callbacks) -> None:
    """Run ``step`` from ``state.step`` to ``steps``, or until a callback stops the run.

    Raises ``NumericsError`` at the first loss or gradient that is not finite, before the weights change.
    """
    while state.step < steps and not state.stop_reason:
        started = time.perf_counter()
        metrics = step(state, callbacks)
        state.step += 1
        state.tokens += metrics.tokens
        callbacks.after_step(state, metrics, started)
    callbacks.at_end(state)


def compile_blocks(model: nn.Module) -> None:
    """Compile the blocks of a transformer for training; one compilation serves all of them."""
    assert isinstance(model, Transformer)
    separate_compiled_code()
    for block in model.blocks:
        block.compile()


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    batches: BatchSource,
    config: Config,
    state: TrainingState,
    callbacks: Callbacks = NO_CALLBACKS,
) -> StepMetrics:
    """Do optimizer step ``state.step`` (from 0): gradients of the mean over all its terms, clipped, then the update.

    Each micro-batch adds its sum of terms divided by the whole step's count (E8), so that any split gives the gradient
    of the whole batch, up to rounding. Callbacks see ``before_update`` with the gradients present. A batch without
    terms trains nothing: its loss is NaN, and there is no update.
    """
    started, step = time.perf_counter(), state.step
    model.train()
    batch = batches.batch(step).to(torch.device(config.runtime.device))
    rate = learning_rate(step, config.training.steps, config.optimizer, config.schedule)
    set_learning_rate(optimizer, rate)
    optimizer.zero_grad(set_to_none=True)
    if not objective.count(batch):
        seconds = time.perf_counter() - started
        return StepMetrics(math.nan, rate, None, batch.token_ids.numel(), seconds)
    half = config.precision.dtype is Dtype.float16
    scale = state.loss_scale.value if half else 1.0
    metrics = accumulate_gradients(model, objective, batch, config, step, scale)
    loss = metrics.pop(objective.unit)
    norm = clip_gradients(model, config.training.gradient_clip, scale)
    tokens = batch.token_ids.numel()
    if half:
        overflowed = not math.isfinite(norm)
        state.loss_scale = state.loss_scale.after(overflowed)
        if overflowed and scale > 1:
            return StepMetrics(loss, rate, None, tokens, time.perf_counter() - started, metrics)
    for name, value in (("loss", loss), ("gradient", norm)):
        if not math.isfinite(value):
            raise NumericsError(
                f"the {name} is {value} at step {step + 1}; try a lower --optimizer.learning-rate than "
                f"{config.optimizer.learning_rate:g}"
            )
    callbacks.before_update(state, model)
    optimizer.step()
    return StepMetrics(loss, rate, norm, tokens, time.perf_counter() - started, metrics)


def accumulate_gradients(
    model: nn.Module, objective: Objective, batch: Rows, config: Config, step: int, scale: float = 1.0
) -> dict[str, float]:
    """Add ``scale`` times the gradient of the step's mean loss, micro-batch by micro-batch; return the step's metrics.

    Each process of the run computes its share of the rows, and all get the sum of the gradients. Random numbers
    (dropout) are seeded by (seed, step, first row), so that none need to be stored.
    """
    device, dtype = batch.token_ids.device, config.precision.dtype
    length = batch.token_ids[0].numel()  # less than the windows' length where a step's windows are cut
    micro = config.training.micro_batch_size * config.window_length
    rows = max(1, micro // length) if micro else len(batch)
    count, here = max(objective.count(batch), 1), processes()
    first, last = here.share(len(batch))
    sums: dict[str, tuple[float, float]] = {}
    for start in range(first, last, rows):
        torch.manual_seed(mix_seed(config.runtime.seed, step, start))
        with compute_in(dtype, device):
            terms = objective(model, batch.rows(start, min(start + rows, last)))
            share = terms.total / count
        (share * scale if scale != 1 else share).backward()
        for name, (value, number) in terms.metrics.items():
            before, counted = sums.get(name, (0.0, 0.0))
            sums[name] = before + float(value), counted + number
    here.sum_gradients(list(model.parameters()))
    names = here.agree(sorted(sums))
    pairs = [sums.get(name, (0.0, 0.0)) for name in names]
    values = here.sum_values([value for value, _ in pairs], device)
    numbers = here.sum_values([number for _, number in pairs], device)
    measured = zip(names, values, numbers, strict=True)
    return {name: value / number for name, value, number in measured if number}


def clip_gradients(model: nn.Module, limit: float, scale: float) -> float:
    """Divide the gradients by ``scale``, then clip them to the global L2 norm ``limit`` (0: no limit).

    Returns the norm before clipping.
    """
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    if scale != 1:
        for gradient in gradients:
            gradient.div_(scale)
    norm = nn.utils.get_total_norm(gradients)
    nn.utils.clip_grads_with_norm_(model.parameters(), limit or math.inf, norm)
    return float(norm)
