"""Plan what to train on a text in a given time, and predict the result.

A plan is a config with a fixed number of steps, so a run made from it resumes bit for bit like any other.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from wholegpt import runtime
from wholegpt.console import Console, Silent
from wholegpt.data import PreparedData
from wholegpt.errors import ConfigError, DataError
from wholegpt.model import parameter_count
from wholegpt.planning.machine import Machine, Rates, Speeds, probe
from wholegpt.planning.plan import Budget, Plan, Text
from wholegpt.planning.scaling import (
    COVERED_BLOCKS,
    COVERED_EPOCHS,
    COVERED_TEXT,
    COVERED_TOKENS,
    EARLY_SHARE,
    PILOT_TOKENS,
    PILOT_WIDTH,
    Difficulty,
    Expectation,
    expected_loss,
    trained_tokens,
)
from wholegpt.planning.trial import run_trial
from wholegpt.settings.choices import AttentionKernel, Dtype, ScheduleKind
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
from wholegpt.training.resolution import resolve

WIDTHS = (64, 96, 128, 192, 256, 320, 384, 512, 640, 768, 1024, 1280, 1536, 2048)
CONTEXT_LENGTH = 256
BATCH_SIZE = 16
SMALL_BATCH_TOKENS = 16e6
"""The batch size is ``BATCH_SIZE`` for training on less than four times as many tokens."""
LEAST_STEPS = 100
"""Fewer steps are hardly more than the warm-up."""
LEAST_TOKENS = LEAST_STEPS * BATCH_SIZE * CONTEXT_LENGTH
LEAST_TEXT = 2 * CONTEXT_LENGTH
"""Minimum tokens of a text for planning."""
BISECTIONS = 12
GOOD_ENOUGH = 1.002
"""If the expected losses of two plans are within this factor, one that takes far less time is preferred."""
ENOUGH_TIME = 0.8
"""Far less time: below this share."""
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
BRIEF_SECONDS = 1.0
ALLOCATOR_BYTES = 128e6
"""Memory that the process needs in training besides its tensors: threads, compiled kernels, heap
fragmentation.
"""
PROGRAM_BYTES = 400e6 + ALLOCATOR_BYTES
"""Memory of Python, PyTorch and ``ALLOCATOR_BYTES``, for a process that cannot be measured here."""
TRIAL_SHARE, LONGEST_TRIAL = 0.05, 30.0
"""Share of the time, and maximum seconds, for measuring the speed of one size: docs/decisions.md."""
PILOT_VALIDATION_TOKENS, TRIAL_VALIDATION_TOKENS = 50_000, 10_000
PLANNED = (
    "model",
    "training",
    "optimizer",
    "schedule",
    "evaluation",
    "checkpointing.every",
    "logging.sample_every",
)
"""Sections and settings that a plan decides."""


def refuse_planned(minutes: float, named: Iterable[str]) -> None:
    """Raise ``ConfigError`` for an invalid time, and for settings in ``named`` (SECTION.FIELD) that a plan
    decides.
    """
    if not 0 < minutes < math.inf:
        raise ConfigError(f"--minutes is {minutes:g}; expected a finite time above 0")
    decided = [name for name in named if name in PLANNED or name.partition(".")[0] in PLANNED]
    if decided:
        raise ConfigError(
            f"--minutes decides {', '.join(decided)} itself; leave it out, or leave out --minutes"
        )


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


def regularization(epochs: float, steps: int, learning_rate: float) -> tuple[float, float]:
    """Return weight decay and dropout for a number of epochs; docs/decisions.md has the measurements.

    Weights are forgotten with a time constant of 1/(η·λ) steps. λ is set so that it is a share of the run
    that decreases with the epochs, 1/(1.2·epochs^0.6), but λ ≤ 1.
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


def choose(
    base: Config,
    text: Text,
    difficulty: Difficulty,
    rates_of: Callable[[Config], Rates],
    seconds: float,
    memory: float,
) -> Choice | None:
    """Return the size and number of steps with the lowest expected loss after ``seconds``.

    If the text is repeated and far less time gives nearly the same loss, the shortest such time is chosen.
    Returns ``None`` if not even the smallest model can be trained in the time. ``base`` must be resolved.
    Raises ``ConfigError`` if no model fits into ``memory`` bytes.
    """
    pilot = planned_config(base, PILOT_WIDTH, text, PILOT_TOKENS)

    def choice(width: int, tokens: float) -> Choice:
        config = planned_config(base, width, text, tokens)
        loss = expected_loss(config, text.train_tokens, pilot, difficulty)
        return Choice(config, run_seconds(config, text, rates_of(config)), loss)

    _refuse_little_memory(base, text, memory)
    choices: list[Choice] = []
    for width in WIDTHS:
        smallest = planned_config(base, width, text, LEAST_TOKENS)
        if peak_tensor_bytes(smallest, 1) > HEADROOM * memory:
            break
        at_small_batches = LEAST_TOKENS * seconds / (LEAST_STEPS * rates_of(smallest).step_seconds)
        low, high = LEAST_TOKENS, max(10 * at_small_batches, LEAST_TOKENS)
        for _ in range(BISECTIONS):  # find the number of tokens that fills the time
            middle = math.sqrt(low * high)
            low, high = (middle, high) if choice(width, middle).seconds <= seconds else (low, middle)
        tokens = low
        while tokens >= LEAST_TOKENS:
            one = choice(width, tokens)
            if one.seconds <= seconds:
                choices.append(one)
                if tokens <= text.train_tokens:
                    break  # without repetition, more tokens are always better
            tokens *= 0.9
    if not choices:
        return None
    for unfit in (_starved, _overgrown, _overtrained):  # each filter applies only if something is left
        choices = [one for one in choices if not unfit(one.config, text)] or choices
    chosen = min(choices, key=lambda one: one.loss.expected)
    if trained_tokens(chosen.config) > text.train_tokens:
        quickest = min(
            (one for one in choices if one.loss.expected <= GOOD_ENOUGH * chosen.loss.expected),
            key=lambda one: one.seconds,
        )
        if quickest.seconds < ENOUGH_TIME * seconds:
            chosen = dataclasses.replace(quickest, enough=True)
    config = chosen.config
    every = math.ceil(CHECKPOINT_SECONDS / rates_of(config).step_seconds)
    return dataclasses.replace(
        chosen,
        config=dataclasses.replace(
            config,
            training=dataclasses.replace(
                config.training, micro_batch_size=fitting_micro_batch(config, memory)
            ),
            checkpointing=dataclasses.replace(config.checkpointing, every=every),
        ),
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


def make_plan(
    config: Config,
    data: PreparedData,
    budget: Budget,
    memory: float,
    console: Console,
) -> Plan:
    """Measure this machine and the text for some seconds, and plan what to train in the time of ``budget``.

    ``memory`` limits the memory of the process. Raises ``ConfigError`` if the time is too short (with the
    minimum that makes sense) or if not even the smallest model fits into the memory; ``DataError`` if the
    text is too small.
    """
    text = Text.of(data)
    _refuse_too_small(text, data)
    pilot = resolve(planned_config(config, PILOT_WIDTH, text, PILOT_TOKENS), data)
    device = torch.device(pilot.runtime.device)
    runtime.apply(pilot.runtime)
    resident = runtime.resident_bytes(device)
    memory = min(memory - resident, runtime.free_memory(device)) - ALLOCATOR_BYTES
    _refuse_little_memory(pilot, text, memory)
    with console.working("measuring this machine"), runtime.memory_apart():
        speeds = Speeds(probe(device, pilot.precision.dtype))

    def measure(some: Config, seconds: float) -> None:
        with console.working("measuring the speed of a training step"), runtime.memory_apart():
            trial = run_trial(some, data, Silent(), TRIAL_VALIDATION_TOKENS, seconds)
        speeds.add(some, trial.rates)

    measure(pilot, BRIEF_SECONDS)
    rates = speeds(pilot)
    pilot_seconds = rates.start_seconds + pilot.training.steps * rates.step_seconds
    least = budget.spent() + pilot_seconds + _least_seconds(pilot, text, speeds)
    if least > 60 * budget.minutes:
        raise _too_little(budget.minutes, least)
    difficulty, rates = _run_pilot(pilot, data, console)
    speeds.add(pilot, rates)
    while True:
        left = 60 * budget.minutes - budget.spent()
        choice = choose(pilot, text, difficulty, speeds, left, memory)
        if choice is None:
            raise _too_little(budget.minutes, budget.spent() + _least_seconds(pilot, text, speeds))
        config = resolve(choice.config, data)
        if speeds.has(config):
            break
        measure(config, min(TRIAL_SHARE * left, LONGEST_TRIAL))
    needed = peak_tensor_bytes(config, config.training.micro_batch_size)
    peak = max(resident + ALLOCATOR_BYTES + needed, runtime.peak_bytes(device))
    choice = dataclasses.replace(choice, config=config)
    return _plan(choice, text, speeds, budget.minutes, budget.spent(), peak, measured=True)


def _refuse_little_memory(base: Config, text: Text, memory: float) -> None:
    needed = peak_tensor_bytes(planned_config(base, WIDTHS[0], text, LEAST_TOKENS), 1) / HEADROOM
    if needed > memory:
        raise ConfigError(
            f"the smallest model that --minutes plans needs {needed / 1e9:.2f} GB besides the program itself, and "
            f"there are {max(memory, 0) / 1e9:.2f} GB for it; {math.ceil((needed - memory) / 1e7) / 100:.2f} GB more "
            "would suffice, and a smaller model can be trained without --minutes"
        )


def _refuse_too_small(text: Text, data: PreparedData) -> None:
    if min(text.train_tokens, text.validation_tokens * LEAST_TEXT / 2) < LEAST_TEXT:
        raise DataError(
            f"{data.manifest.corpus}: {text.train_tokens:,} tokens to train on and {text.validation_tokens} held out "
            f"are too few for --minutes, which plans from {LEAST_TEXT} and 2 on; give more text, or leave out "
            "--minutes and choose a small --model.context-length"
        )


def measure_difficulty(config: Config, data: PreparedData, console: Console) -> Difficulty:
    """Measure how hard a text is by a short pilot training on it."""
    text = Text.of(data)
    _refuse_too_small(text, data)
    pilot = resolve(planned_config(config, PILOT_WIDTH, text, PILOT_TOKENS), data)
    return _run_pilot(pilot, data, console)[0]


def _run_pilot(pilot: Config, data: PreparedData, console: Console) -> tuple[Difficulty, Rates]:
    early, last = max(1, pilot.training.steps // EARLY_SHARE), pilot.training.steps
    with console.progress("measuring how hard the text is", last) as progress, runtime.memory_apart():
        trial = run_trial(pilot, data, progress, PILOT_VALIDATION_TOKENS, scored_after=(early,))
    return Difficulty(trial.validation_nats[early], trial.validation_nats[last]), trial.rates


def plan_elsewhere(
    config: Config, text: Text, difficulty: Difficulty, minutes: float, machine: Machine
) -> Plan:
    """Return a plan for a machine that is only described. Raises like ``make_plan``."""
    on_cpu = config.runtime.device == "cpu"
    precision = dataclasses.replace(
        config.precision,
        dtype=Dtype.bfloat16 if config.precision.dtype is Dtype.automatic else config.precision.dtype,
        attention=AttentionKernel.blocked if on_cpu else AttentionKernel.fused,
    )
    base = dataclasses.replace(config, precision=precision)
    speeds = Speeds(machine)
    # The time that ``make_plan`` would spend before the run: the pilot, and a trial of its choice.
    pilot = planned_config(base, PILOT_WIDTH, text, PILOT_TOKENS)
    spent = pilot.training.steps * speeds(pilot).step_seconds + min(TRIAL_SHARE * 60 * minutes, LONGEST_TRIAL)
    choice = choose(base, text, difficulty, speeds, 60 * minutes - spent, machine.memory - PROGRAM_BYTES)
    if choice is None:
        raise _too_little(minutes, spent + _least_seconds(base, text, speeds))
    needed = peak_tensor_bytes(choice.config, choice.config.training.micro_batch_size)
    return _plan(choice, text, speeds, minutes, spent, PROGRAM_BYTES + needed, measured=False)


def _plan(
    choice: Choice, text: Text, speeds: Speeds, minutes: float, spent: float, peak: float, measured: bool
) -> Plan:
    config, tokens, rates = choice.config, trained_tokens(choice.config), speeds(choice.config)
    seconds = spent + choice.seconds
    notes = []
    if math.isinf(text.train_tokens):
        notes.append("for endless English prose; name a text to measure it")
    if tokens > COVERED_TOKENS or parameter_count(config.model).blocks > COVERED_BLOCKS:
        notes.append(
            f"beyond the {COVERED_TOKENS / 1e6:g} million tokens and parameters that expected losses were fitted to"
        )
    return Plan(
        minutes=minutes,
        measured=measured,
        config=config,
        seconds=seconds,
        train_seconds=rates.start_seconds + config.training.steps * rates.step_seconds,
        step_seconds=rates.step_seconds,
        tokens=tokens,
        epochs=tokens / text.train_tokens,
        peak_memory_bytes=int(peak),
        product_flops_per_second=speeds.machine.flops,
        bits_per_byte=choice.loss.times(1 / (math.log(2) * text.bytes_per_token)),
        useful_minutes=seconds / 60 if choice.enough else None,
        notes=tuple(notes),
    )


def _least_seconds(base: Config, text: Text, rates_of: Callable[[Config], Rates]) -> float:
    """Compute the seconds of a run of the smallest model for the fewest steps."""
    smallest = planned_config(base, WIDTHS[0], text, LEAST_TOKENS)
    return run_seconds(smallest, text, rates_of(smallest))


def _too_little(minutes: float, least_seconds: float) -> ConfigError:
    return ConfigError(
        f"--minutes is {minutes:g}, too few to train anything on this text and machine; the least that makes sense is "
        f"{math.ceil(least_seconds / 6 + 1) / 10:.1f}"
    )
