"""A trial: a few steps of real training on the given text, measured and discarded."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from wholegpt import runtime
from wholegpt.console import QUIET, Progress
from wholegpt.data import PreparedData
from wholegpt.evaluation import TextScore, evaluate_tokens
from wholegpt.generation import generate
from wholegpt.planning.machine import Rates
from wholegpt.settings.choices import Execution
from wholegpt.settings.schema import Config, GenerationConfig
from wholegpt.stages.pretraining import Pretraining
from wholegpt.training.callbacks import AverageWeights
from wholegpt.training.events import Callback, Callbacks, StepMetrics
from wholegpt.training.loop import compile_blocks, train
from wholegpt.training.state import TrainingState

WARM_STEPS = 2
"""First steps that are not timed: they allocate memory and choose kernels."""
SAMPLE_TOKENS = 24


@dataclass(frozen=True)
class Trial:
    """The measurements of a trial."""

    rates: Rates
    """Mean speed of the steps, and speed of evaluation and generation."""
    validation_nats: dict[int, float]
    """Nats per token of the validation text, after the requested steps and after the last one."""


class _Watch(Callback):
    """Times the steps, evaluates after the requested ones, and ends a trial after its time."""

    def __init__(
        self,
        seconds: float,
        scored_after: tuple[int, ...],
        score: Callable[[], TextScore],
        progress: Progress,
    ) -> None:
        self.seconds, self.scored_after, self.score, self.progress = seconds, scored_after, score, progress
        self.warm: list[float] = []
        self.steps: list[float] = []
        self.nats: dict[int, float] = {}

    def after_step(self, state: TrainingState, metrics: StepMetrics) -> None:
        (self.warm if state.step <= WARM_STEPS else self.steps).append(metrics.seconds)
        self.progress.advance(1, f"loss {metrics.loss:.3f} nats/token")
        if state.step in self.scored_after:
            self.nats[state.step] = self.score().nats_per_token
        if self.steps and sum(self.steps) >= self.seconds:
            state.stop_reason = "measured"

    @property
    def step_seconds(self) -> float:
        """Return the mean: occasional slow steps are part of every run."""
        return statistics.fmean(self.steps)

    @property
    def start_seconds(self) -> float:
        return max(0.0, sum(self.warm) - len(self.warm) * self.step_seconds)


def run_trial(
    config: Config,
    data: PreparedData,
    progress: Progress,
    sample: int,
    seconds: float = math.inf,
    scored_after: tuple[int, ...] = (),
) -> Trial:
    """Train ``config`` for its steps, or for ``seconds`` but at least three steps; evaluate on ``sample``
    tokens.

    ``config`` must be resolved. The steps use the normal training loop and loader.
    """
    device = torch.device(config.runtime.device)
    runtime.apply(config.runtime)
    stage, state = Pretraining(config, data), TrainingState()
    model = stage.new_model().to(device)
    optimizer = stage.make_optimizer(model)

    def score() -> TextScore:
        model.eval()
        with runtime.memory_apart():
            return evaluate_tokens(
                model,
                data.validation,
                data.tokenizer,
                device,
                config.precision.dtype,
                QUIET,
                sample=sample,
                documents=config.windows.documents,
            )

    def step(state: TrainingState, callbacks: Callbacks) -> StepMetrics:
        return stage.train_step(model, optimizer, stage.batches, state, callbacks)

    watch, average = _Watch(seconds, scored_after, score, progress), config.training.ema_decay
    averaging = [AverageWeights(optimizer, average)] if average else []
    if config.precision.execution is Execution.compiled:
        compile_blocks(model)
    train(step, config.training.steps, state, Callbacks([*averaging, watch]))
    started = time.perf_counter()
    last = score()
    scored = time.perf_counter()
    settings = GenerationConfig(max_tokens=SAMPLE_TOKENS, min_tokens=SAMPLE_TOKENS, seed=config.runtime.seed)
    generate(model, data.tokenizer, [[data.tokenizer.end_of_text_id]], [settings], device, QUIET)
    ended = time.perf_counter()
    rates = Rates(
        watch.step_seconds,
        last.tokens / (scored - started),
        SAMPLE_TOKENS / (ended - scored),
        watch.start_seconds,
    )
    return Trial(rates, {**watch.nats, state.step: last.nats_per_token})
