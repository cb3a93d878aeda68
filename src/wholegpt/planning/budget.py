"""The time budget: what to train on a text in the minutes given, and what to expect of it.

A plan is a config with a fixed number of steps, so a run made from it resumes bit for bit like any other.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from wholegpt import runtime
from wholegpt.checks import complete_model, complete_optimizer
from wholegpt.config import (
    AttentionKernel,
    Config,
    Dtype,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    ScheduleKind,
    TrainingConfig,
    to_mapping,
)
from wholegpt.console import Console
from wholegpt.data import PreparedData
from wholegpt.errors import ConfigError
from wholegpt.model import parameter_count
from wholegpt.planning.machine import Machine, Rates, Speeds, probe
from wholegpt.planning.scaling import (
    EARLY_SHARE,
    PILOT_TOKENS,
    PILOT_WIDTH,
    Difficulty,
    Expectation,
    expected_loss,
)
from wholegpt.planning.trial import run_trial
from wholegpt.training.memory import HEADROOM, fitting_micro_batch, peak_tensor_bytes
from wholegpt.training.resolution import resolve

WIDTHS = (64, 96, 128, 192, 256, 320, 384, 512, 640, 768, 1024, 1280, 1536, 2048)
CONTEXT_LENGTH = 256
BATCH_SIZE = 16
SMALL_BATCH_TOKENS = 16e6
LEAST_STEPS = 100
"""Fewer are hardly more than the warm-up."""
LEAST_TOKENS = LEAST_STEPS * BATCH_SIZE * CONTEXT_LENGTH
BISECTIONS = 12
GOOD_ENOUGH = 1.002
"""Of plans whose expected losses are this near the best, one that takes far less time is enough."""
ENOUGH_TIME = 0.8
"""Far less: below this share of the time."""
EVALUATIONS = 10
SAMPLES = 3
CHECKPOINT_SECONDS = 600
DISK_BYTES_PER_SECOND = 2e8
REPORT_SECONDS = 2.0
TRIAL_SHARE, LONGEST_TRIAL = 0.03, 20.0
"""How much of the time may go into measuring the speed of one size, and seconds at most."""
PILOT_VALIDATION_TOKENS, TRIAL_VALIDATION_TOKENS = 50_000, 10_000
PLANNED_SECTIONS = ("model", "training", "optimizer", "schedule", "evaluation")


@dataclass(frozen=True)
class Text:
    """What a plan must know of a text."""

    train_tokens: float
    validation_tokens: int
    bytes_per_token: float
    """Of the validation text."""
    vocab_size: int

    @classmethod
    def of(cls, data: PreparedData) -> "Text":
        """Those of prepared data."""
        train, validation = data.manifest.train, data.manifest.validation
        per_token = validation.bytes / max(validation.tokens, 1)
        return cls(train.tokens, validation.tokens, per_token, data.manifest.vocab_size)


ENGLISH_PROSE = Text(train_tokens=math.inf, validation_tokens=400_000, bytes_per_token=3.61, vocab_size=4096)
"""A text without end, as reviews, news and speeches are, where none is named."""


@dataclass(frozen=True)
class Plan:
    """What will be trained, how long it takes, what it needs, and what to expect of it."""

    minutes: float
    """What was asked for."""
    measured: bool
    """Whether speed was measured on this machine; else it was reckoned from a description."""
    config: Config
    seconds: float
    """Of the whole command: reading, measuring, training, evaluation, samples, saving."""
    train_seconds: float
    step_seconds: float
    tokens: int
    passes: float
    """Over the training text."""
    peak_memory_bytes: int
    bits_per_byte: Expectation
    """Of the whole held-out text, after the last step."""
    useful_minutes: float | None = None
    """Where less time than asked for is enough: more does not help on this text."""

    def to_json(self) -> dict[str, Any]:
        """What ``wholegpt plan --json`` prints."""
        return {
            "minutes": self.minutes,
            "measured": self.measured,
            "seconds": self.seconds,
            "train_seconds": self.train_seconds,
            "step_seconds": self.step_seconds,
            "steps": self.config.training.steps,
            "tokens": self.tokens,
            "passes": self.passes,
            "parameters": parameter_count(self.config.model).total,
            "peak_memory_bytes": self.peak_memory_bytes,
            "bits_per_byte": dataclasses.asdict(self.bits_per_byte),
            "useful_minutes": self.useful_minutes,
            "config": to_mapping(self.config),
        }

    def describe(self) -> str:
        """The plan for people, in a few lines."""
        model, training, loss = self.config.model, self.config.training, self.bits_per_byte
        basis = "measured on this machine" if self.measured else "reckoned from the description, not measured"
        lines = [
            f"plan for {self.minutes:g} minutes, {basis}:",
            f"  model   {parameter_count(model).total:,} parameters: {model.n_layers} layers, {model.d_model} wide, "
            f"vocabulary of {model.vocab_size:,}" + (f", dropout {model.dropout:g}" if model.dropout else ""),
            f"  steps   {training.steps:,} of {training.batch_size} × {model.context_length} tokens: {self.tokens:,} "
            f"tokens, {self.passes:.1f} passes over the text, {self.tokens / self.train_seconds:,.0f} tokens/s",
            f"  time    {clock(self.seconds)} in all, {clock(self.train_seconds)} of it training",
            f"  memory  about {self.peak_memory_bytes / 1e9:.2f} GB at most",
            f"  loss    {loss.expected:.3f} bits per byte on held-out text ({loss.low:.3f} to {loss.high:.3f})",
        ]
        if self.useful_minutes is not None:
            lines.append(f"  more than {self.useful_minutes:.1f} minutes would hardly help on this text")
        return "\n".join(lines)


def clock(seconds: float) -> str:
    """Minutes and seconds, with hours where there are any."""
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def refuse_planned(minutes: float, sections: Iterable[str]) -> None:
    """Raise ``ConfigError`` for a time that is none, and for named ``sections`` that a plan decides itself."""
    if not 0 < minutes < math.inf:
        raise ConfigError(f"--minutes is {minutes:g}; expected a time above 0")
    named = [name for name in PLANNED_SECTIONS if name in sections]
    if named:
        raise ConfigError(
            f"--minutes decides the settings of {', '.join(PLANNED_SECTIONS)} itself; leave out those of "
            f"{', '.join(named)}, or leave out --minutes"
        )


def model_of_width(width: int, vocab_size: int) -> ModelConfig:
    """The modern (Qwen3) model of the ladder: a layer for each 64 of width, three at least; heads of 64, or 32."""
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
    """Windows in a step of a training on so many tokens: 16 up to 64 million, then growing as their root.

    The sweep has 16 windows throughout; the growth is a rule for longer trainings that was not measured.
    """
    return BATCH_SIZE * 2 ** max(0, math.floor(math.log(tokens / SMALL_BATCH_TOKENS, 4)) if tokens else 0)


def planned_config(base: Config, width: int, text: Text, tokens: float) -> Config:
    """``base`` with everything that a plan decides for a model so wide, trained on about so many tokens."""
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
        schedule=ScheduleConfig(
            ScheduleKind.warmup_stable_decay, warmup_steps=20, final_fraction=0.0, decay_fraction=0.8
        ),
        evaluation=EvaluationConfig(every=math.ceil(steps / EVALUATIONS), patience=0),
        checkpointing=dataclasses.replace(base.checkpointing, every=0),
        logging=dataclasses.replace(base.logging, sample_every=math.ceil(steps / 2)),
    )


def regularization(passes: float, steps: int, learning_rate: float) -> tuple[float, float]:
    """Weight decay and dropout for so many passes over the text; docs/decisions.md has the measurements.

    Weights forget with a time constant of 1/(η·λ) steps; λ is set so that it is a share of the run that falls
    with the passes, 1/(1.2·passes^0.6), but λ ≤ 1.
    """
    share = 1.2 * max(1.0, passes) ** 0.6
    dropout = 0.0 if passes <= 6 else 0.1 if passes <= 15 else 0.2
    return min(1.0, share / (learning_rate * steps)), dropout


def run_seconds(config: Config, text: Text, rates: Rates) -> float:
    """Seconds that a run of ``config`` takes: its steps, evaluations, samples, checkpoints and report."""
    tokens = EVALUATIONS * min(config.evaluation.tokens, text.validation_tokens) + text.validation_tokens
    saved = 16 * parameter_count(config.model).total
    return (
        config.training.steps * rates.step_seconds
        + tokens / rates.validation_tokens_per_second
        + SAMPLES * config.logging.sample_tokens / rates.sample_tokens_per_second
        + EVALUATIONS * saved / DISK_BYTES_PER_SECOND
        + REPORT_SECONDS
    )


@dataclass(frozen=True)
class Choice:
    """A config and what it takes."""

    config: Config
    seconds: float
    """Of the run, everything in it."""
    loss: Expectation
    """In nats per token."""


def choose(
    base: Config,
    text: Text,
    difficulty: Difficulty,
    rates_of: Callable[[Config], Rates],
    seconds: float,
    memory: float,
) -> Choice | None:
    """The size and number of steps with the lowest expected loss after ``seconds``.

    Where that repeats the text and far less time comes to nearly the same, the least such time. Nothing where
    not even the smallest model can be trained in the time. ``base`` must be decided. Raises ``ConfigError``
    where none fits into ``memory`` bytes.
    """
    pilot = planned_config(base, PILOT_WIDTH, text, PILOT_TOKENS)

    def choice(width: int, tokens: float) -> Choice:
        config = planned_config(base, width, text, tokens)
        loss = expected_loss(config, text.train_tokens, pilot, difficulty)
        return Choice(config, run_seconds(config, text, rates_of(config)), loss)

    fitting_micro_batch(planned_config(base, WIDTHS[0], text, LEAST_TOKENS), memory)
    choices: list[Choice] = []
    for width in WIDTHS:
        smallest = planned_config(base, width, text, LEAST_TOKENS)
        if peak_tensor_bytes(smallest, 1) > HEADROOM * memory:
            break
        at_small_batches = LEAST_TOKENS * seconds / (LEAST_STEPS * rates_of(smallest).step_seconds)
        low, high = LEAST_TOKENS, max(10 * at_small_batches, LEAST_TOKENS)
        for _ in range(BISECTIONS):  # what can just be afforded is to fill the time
            middle = math.sqrt(low * high)
            low, high = (middle, high) if choice(width, middle).seconds <= seconds else (low, middle)
        tokens = low
        while tokens >= LEAST_TOKENS:
            one = choice(width, tokens)
            if one.seconds <= seconds:
                choices.append(one)
            tokens *= 0.9
    if not choices:
        return None
    best = min(choices, key=lambda one: one.loss.expected)
    enough = min(
        (one for one in choices if one.loss.expected <= GOOD_ENOUGH * best.loss.expected),
        key=lambda one: one.seconds,
    )
    repeats = _tokens(best.config) > text.train_tokens
    chosen = enough if repeats and enough.seconds < ENOUGH_TIME * seconds else best
    rows = fitting_micro_batch(chosen.config, memory)
    training = dataclasses.replace(chosen.config.training, micro_batch_size=rows)
    return dataclasses.replace(chosen, config=dataclasses.replace(chosen.config, training=training))


def make_plan(
    config: Config,
    data: PreparedData,
    minutes: float,
    memory: float,
    spent: Callable[[], float],
    console: Console,
) -> Plan:
    """Measure this machine and the text for some seconds, and plan what to train in ``minutes``.

    ``spent`` tells how many seconds of them are over; ``memory`` limits what the machine has free. Raises
    ``ConfigError`` for a time too short (with the least that makes sense), or where not even the smallest model
    fits into the memory.
    """
    text = Text.of(data)
    pilot = resolve(planned_config(config, PILOT_WIDTH, text, PILOT_TOKENS), data)
    device = torch.device(pilot.runtime.device)
    memory = min(memory, runtime.free_memory(device))
    runtime.apply(pilot.runtime)
    resident = runtime.resident_bytes(device)
    with console.working("measuring this machine"), runtime.memory_apart():
        speeds = Speeds(probe(device, pilot.precision.dtype, memory))
    brief = run_trial(pilot, data, console, TRIAL_VALIDATION_TOKENS, seconds=0.0)
    speeds.add(pilot, brief.rates)
    pilot_seconds = pilot.training.steps * speeds(pilot).step_seconds
    least = spent() + pilot_seconds + _least_seconds(pilot, text, speeds)
    if least > 60 * minutes:
        raise _too_little(minutes, least)
    difficulty, rates = _run_pilot(pilot, data, console)
    speeds.add(pilot, rates)
    while True:
        left = 60 * minutes - spent()
        choice = choose(pilot, text, difficulty, speeds, left, memory)
        if choice is None:
            raise _too_little(minutes, spent() + _least_seconds(pilot, text, speeds))
        config = resolve(choice.config, data)
        if speeds.has(config):
            break
        seconds = min(TRIAL_SHARE * left, LONGEST_TRIAL)
        speeds.add(config, run_trial(config, data, console, TRIAL_VALIDATION_TOKENS, seconds).rates)
    peak = max(
        resident + peak_tensor_bytes(config, config.training.micro_batch_size), runtime.peak_bytes(device)
    )
    return _plan(config, text, choice, speeds(config), minutes, spent(), peak, measured=True)


def measure_difficulty(config: Config, data: PreparedData, console: Console) -> Difficulty:
    """How hard a text is, from the pilot's short training on it."""
    pilot = resolve(planned_config(config, PILOT_WIDTH, Text.of(data), PILOT_TOKENS), data)
    return _run_pilot(pilot, data, console)[0]


def _run_pilot(pilot: Config, data: PreparedData, console: Console) -> tuple[Difficulty, Rates]:
    early, last = max(1, pilot.training.steps // EARLY_SHARE), pilot.training.steps
    trial = run_trial(pilot, data, console, PILOT_VALIDATION_TOKENS, scored_after=(early,))
    return Difficulty(trial.validation_nats[early], trial.validation_nats[last]), trial.rates


def plan_elsewhere(
    config: Config, text: Text, difficulty: Difficulty, minutes: float, machine: Machine
) -> Plan:
    """A plan for a machine that is only described, reckoned from its figures. Raises as ``make_plan`` does."""
    on_cpu = config.runtime.device == "cpu"
    precision = dataclasses.replace(
        config.precision,
        dtype=Dtype.bfloat16 if config.precision.dtype is Dtype.automatic else config.precision.dtype,
        attention=AttentionKernel.blocked if on_cpu else AttentionKernel.fused,
    )
    base = dataclasses.replace(config, precision=precision)
    speeds = Speeds(machine)
    choice = choose(base, text, difficulty, speeds, 60 * minutes, machine.memory)
    if choice is None:
        raise _too_little(minutes, _least_seconds(base, text, speeds))
    peak = peak_tensor_bytes(choice.config, choice.config.training.micro_batch_size)
    return _plan(choice.config, text, choice, speeds(choice.config), minutes, 0.0, peak, measured=False)


def _plan(
    config: Config,
    text: Text,
    choice: Choice,
    rates: Rates,
    minutes: float,
    spent: float,
    peak: float,
    measured: bool,
) -> Plan:
    tokens = _tokens(config)
    seconds = spent + choice.seconds
    return Plan(
        minutes=minutes,
        measured=measured,
        config=config,
        seconds=seconds,
        train_seconds=config.training.steps * rates.step_seconds,
        step_seconds=rates.step_seconds,
        tokens=tokens,
        passes=tokens / text.train_tokens,
        peak_memory_bytes=int(peak),
        bits_per_byte=choice.loss.times(1 / (math.log(2) * text.bytes_per_token)),
        useful_minutes=seconds / 60 if seconds < 60 * ENOUGH_TIME * minutes else None,
    )


def _tokens(config: Config) -> int:
    """Trained on by the whole run."""
    return config.training.steps * config.training.batch_size * config.model.context_length


def _least_seconds(base: Config, text: Text, rates_of: Callable[[Config], Rates]) -> float:
    """Of a run of the smallest model for the fewest steps."""
    smallest = planned_config(base, WIDTHS[0], text, LEAST_TOKENS)
    return run_seconds(smallest, text, rates_of(smallest))


def _too_little(minutes: float, least_seconds: float) -> ConfigError:
    return ConfigError(
        f"--minutes is {minutes:g}, too few to train anything on this text here; the least that makes sense is "
        f"{math.ceil(least_seconds / 6 + 1) / 10:.1f}"
    )
