"""The choice of a model and its training for a text, a time and a memory: all settings that a plan decides."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from wholegpt.errors import ConfigError
from wholegpt.model import parameter_count
from wholegpt.planning.machine import Rates
from wholegpt.planning.plan import Text
from wholegpt.planning.scaling import (
    COVERED_BLOCKS,
    COVERED_EPOCHS,
    COVERED_TEXT,
    COVERED_TOKENS,
    PILOT_STEPS,
    PILOT_WIDTH,
    Difficulty,
    Expectation,
    expected_loss,
    trained_tokens,
)
from wholegpt.settings.choices import ScheduleKind
from wholegpt.settings.schema import (
    Config,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainingConfig,
)
from wholegpt.settings.validation import complete_model, complete_optimizer
from wholegpt.training.memory import HEADROOM, fitting_micro_batch, peak_tensor_bytes

WIDTHS = (64, 96, 128, 192, 256, 320, 384, 512, 640, 768, 1024, 1280, 1536, 2048)
CONTEXT_LENGTH = 256
BATCH_SIZE = 16
SMALL_BATCH_TOKENS = 16e6
"""The batch size is ``BATCH_SIZE`` for training on less than four times as many tokens."""
LEAST_STEPS = 100
"""Minimum steps of a plan; fewer are hardly more than the warm-up."""
LEAST_TOKENS = LEAST_STEPS * BATCH_SIZE * CONTEXT_LENGTH
FEWEST_STEPS = 20
"""Steps of the smallest model if the time is too short for more."""
LEAST_TEXT = 2 * CONTEXT_LENGTH
"""Minimum tokens of a text for planning."""
BISECTIONS = 12
GOOD_ENOUGH = 1.002
"""If the expected losses of two plans are within this factor, one that takes far less time is preferred."""
ENOUGH_TIME = 0.8
"""Share of the time below which a plan takes far less time."""
TOKENS_A_PARAMETER = 20
"""Maximum distinct tokens per parameter, for training beyond the range of the sweep (Hoffmann et al. 2022,
table 3).
"""
EVALUATIONS = 10
SAMPLES = 3
CHECKPOINT_SECONDS = 600.0
"""Maximum seconds between checkpoints, besides those of the best evaluations."""
DISK_BYTES_PER_SECOND = 2e8
CHECKPOINT_BYTES = 16
"""Bytes of weights and optimizer state per parameter, rounded up."""
REPORT_SECONDS = 2.0


def model_of_width(width: int, vocab_size: int) -> ModelConfig:
    """Return the modern (Qwen3) model of this width: a layer per 64 of width, at least three; heads of 64, or
    32.
    """
    return complete_model(
        ModelConfig(
            vocab_size=vocab_size,
            context_length=CONTEXT_LENGTH,
            n_layers=max(3, round(width / 64)),
            d_model=width,
            n_heads=width // (64 if width >= 192 else 32),
        )
    )


def batch_size(tokens: float) -> int:
    """Return the windows per step for training on so many tokens: 16 up to 64 million, then growing as their
    root.

    The sweep uses 16 windows throughout; the growth is an unmeasured rule for longer training.
    """
    return BATCH_SIZE * 2 ** max(0, math.floor(math.log(tokens / SMALL_BATCH_TOKENS, 4)) if tokens else 0)


def planned_config(base: Config, width: int, text: Text, tokens: float) -> Config:
    """Return ``base`` with everything that a plan decides for a model of this width and about so many tokens."""
    batch = batch_size(tokens)
    steps = max(1, round(tokens / (batch * CONTEXT_LENGTH)))
    optimizer = complete_optimizer(OptimizerConfig())
    weight_decay, dropout = regularization(tokens / text.train_tokens, steps, optimizer.learning_rate)
    model = dataclasses.replace(model_of_width(width, text.vocab_size), dropout=dropout)
    return dataclasses.replace(
        base,
        model=model,
        training=TrainingConfig(steps=steps, batch_size=batch),
        optimizer=dataclasses.replace(optimizer, weight_decay=weight_decay),
        schedule=ScheduleConfig(ScheduleKind.warmup_stable_decay, final_fraction=0.0, decay_fraction=0.8),
        evaluation=EvaluationConfig(every=math.ceil(steps / EVALUATIONS), patience=0),
        logging=dataclasses.replace(base.logging, sample_every=math.ceil(steps / 2)),
    )


def step_tokens() -> int:
    """Return the tokens of a step of ``BATCH_SIZE`` windows."""
    return BATCH_SIZE * CONTEXT_LENGTH


def smallest_config(base: Config, text: Text, steps: int = 0) -> Config:
    """Return the plan of the smallest model, for ``steps`` or ``LEAST_STEPS``."""
    return planned_config(base, WIDTHS[0], text, (steps or LEAST_STEPS) * step_tokens())


def pilot_config(base: Config, text: Text, steps: int = 0) -> Config:
    """Return the plan of the pilot, for ``steps`` or ``PILOT_STEPS``."""
    return planned_config(base, PILOT_WIDTH, text, (steps or PILOT_STEPS) * step_tokens())


def regularization(epochs: float, steps: int, learning_rate: float) -> tuple[float, float]:
    """Return weight decay and dropout for a number of epochs; docs/decisions.md has the measurements.

    Weights are forgotten with a time constant of 1/(η·λ) steps. λ is set so that this time constant is a share of the
    run, 1/(1.2·epochs^0.6), which decreases with the epochs, but λ ≤ 1.
    """
    share = 1.2 * max(1.0, epochs) ** 0.6
    dropout = 0.0 if epochs <= 6 else 0.1 if epochs <= 15 else 0.2
    return min(1.0, share / (learning_rate * steps)), dropout


def run_seconds(config: Config, text: Text, rates: Rates) -> float:
    """Compute the seconds of a run of ``config``: its steps, evaluations, samples, checkpoints and report."""
    tokens = EVALUATIONS * min(config.evaluation.tokens, text.validation_tokens) + text.validation_tokens
    training = rates.start_seconds + config.training.steps * rates.step_seconds
    checkpoints = EVALUATIONS + training / CHECKPOINT_SECONDS
    return (
        training
        + tokens / rates.validation_tokens_per_second
        + SAMPLES * config.logging.sample_tokens / rates.sample_tokens_per_second
        + checkpoints * CHECKPOINT_BYTES * parameter_count(config.model).total / DISK_BYTES_PER_SECOND
        + REPORT_SECONDS
    )


@dataclass(frozen=True)
class Choice:
    """A config, its duration and its expected loss."""

    config: Config
    seconds: float
    """Duration of the whole run."""
    loss: Expectation
    """In nats per token."""
    enough: bool = False
    """Whether more time would hardly help."""


@dataclass(frozen=True)
class Chooser:
    """Chooses a model and its training for a time; the fields are what the choice depends on besides the time."""

    base: Config
    """Resolved. A choice changes what a plan decides."""
    text: Text
    difficulty: Difficulty
    rates_of: Callable[[Config], Rates]
    memory: float
    """Bytes."""

    def choose(self, seconds: float) -> Choice | None:
        """Return the size and number of steps with the lowest expected loss after ``seconds``.

        If the text is repeated and far less time gives nearly the same loss, the shortest such time is chosen.
        Returns ``None`` if not even the smallest model can be trained in the time. Raises ``ConfigError`` if no model
        fits into the memory.
        """
        refuse_little_memory(self.base, self.text, self.memory)
        choices: list[Choice] = []
        for width in WIDTHS:
            smallest = planned_config(self.base, width, self.text, LEAST_TOKENS)
            if peak_tensor_bytes(smallest, 1) > HEADROOM * self.memory:
                break
            choices += self._of_width(width, seconds)
        if not choices:
            return None
        for unfit in (_starved, _overgrown, _overtrained):  # each filter applies only if something is left
            choices = [one for one in choices if not unfit(one.config, self.text)] or choices
        chosen = min(choices, key=lambda one: one.loss.expected)
        if trained_tokens(chosen.config) > self.text.train_tokens:
            quickest = min(
                (one for one in choices if one.loss.expected <= GOOD_ENOUGH * chosen.loss.expected),
                key=lambda one: one.seconds,
            )
            if quickest.seconds < ENOUGH_TIME * seconds:
                chosen = dataclasses.replace(quickest, enough=True)
        return dataclasses.replace(chosen, config=self._with_memory(chosen.config))

    def least(self, seconds: float) -> Choice:
        """Return the smallest model with the steps that fit into ``seconds``, at least ``FEWEST_STEPS``."""
        config = smallest_config(self.base, self.text, FEWEST_STEPS)
        left = seconds - run_seconds(config, self.text, self.rates_of(config))
        steps = FEWEST_STEPS + max(0, int(left / self.rates_of(config).step_seconds))
        choice = self._choice(smallest_config(self.base, self.text, steps))
        return dataclasses.replace(choice, config=self._with_memory(choice.config))

    def _of_width(self, width: int, seconds: float) -> list[Choice]:
        """Return the choices for a model of this width that take at most ``seconds``, with fewer and fewer tokens, down
        to those of the text or to ``LEAST_TOKENS``.
        """

        def choice(tokens: float) -> Choice:
            return self._choice(planned_config(self.base, width, self.text, tokens))

        step_seconds = self.rates_of(planned_config(self.base, width, self.text, LEAST_TOKENS)).step_seconds
        at_small_batches = LEAST_TOKENS * seconds / (LEAST_STEPS * step_seconds)
        low, high = LEAST_TOKENS, max(10 * at_small_batches, LEAST_TOKENS)
        for _ in range(BISECTIONS):  # find the number of tokens that fills the time
            middle = math.sqrt(low * high)
            low, high = (middle, high) if choice(middle).seconds <= seconds else (low, middle)
        found: list[Choice] = []
        tokens = low
        while tokens >= LEAST_TOKENS:
            one = choice(tokens)
            if one.seconds <= seconds:
                found.append(one)
                if tokens <= self.text.train_tokens:
                    break  # without repetition, more tokens are always better
            tokens *= 0.9
        return found

    def _choice(self, config: Config) -> Choice:
        """Return the duration and the expected loss of a planned ``config``."""
        loss = expected_loss(config, self.text.train_tokens, self._pilot, self.difficulty)
        return Choice(config, run_seconds(config, self.text, self.rates_of(config)), loss)

    @cached_property
    def _pilot(self) -> Config:
        return pilot_config(self.base, self.text)

    def _with_memory(self, config: Config) -> Config:
        """Return ``config`` with micro-batches that fit into the memory, and a checkpoint every
        ``CHECKPOINT_SECONDS``.
        """
        training = dataclasses.replace(
            config.training, micro_batch_size=fitting_micro_batch(config, self.memory)
        )
        every = math.ceil(CHECKPOINT_SECONDS / self.rates_of(config).step_seconds)
        return dataclasses.replace(
            config, training=training, checkpointing=dataclasses.replace(config.checkpointing, every=every)
        )


def _starved(config: Config, text: Text) -> bool:
    """Return whether a model is too small for its tokens by the published rule, beyond the range of the
    sweep.
    """
    fresh = min(trained_tokens(config), text.train_tokens)
    return fresh > COVERED_TOKENS and fresh > TOKENS_A_PARAMETER * parameter_count(config.model).total


def _overgrown(config: Config, text: Text) -> bool:
    """Return whether a model is larger for its text than any of the sweep, so that it would overfit."""
    return parameter_count(config.model).blocks > text.train_tokens * COVERED_BLOCKS / COVERED_TEXT


def _overtrained(config: Config, text: Text) -> bool:
    """Return whether training repeats its text more often than any of the sweep."""
    return trained_tokens(config) > COVERED_EPOCHS * text.train_tokens


def refuse_little_memory(base: Config, text: Text, memory: float) -> None:
    """Raise ``ConfigError`` if not even the smallest model can be trained in ``memory`` bytes."""
    needed = peak_tensor_bytes(planned_config(base, WIDTHS[0], text, LEAST_TOKENS), 1) / HEADROOM
    if needed > memory:
        raise ConfigError(
            f"the smallest model that --minutes plans needs {needed / 1e9:.2f} GB besides the program itself, and "
            f"there are {max(memory, 0) / 1e9:.2f} GB for it; {math.ceil((needed - memory) / 1e7) / 100:.2f} GB more "
            "would suffice, and a smaller model can be trained without --minutes"
        )
