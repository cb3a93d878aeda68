"""Plan what to train on a text in a given time, and predict the result.

A plan is a config with a fixed number of steps, so a run made from it resumes bit for bit like any other.
"""

import dataclasses
import math

import torch

from wholegpt import runtime
from wholegpt.console import Console, Silent
from wholegpt.data import PreparedData
from wholegpt.errors import ConfigError, DataError
from wholegpt.model import parameter_count
from wholegpt.planning.choice import (
    LEAST_TEXT,
    Choice,
    Chooser,
    pilot_config,
    refuse_little_memory,
    run_seconds,
    smallest_config,
)
from wholegpt.planning.machine import Machine, Rates, Speeds, probe
from wholegpt.planning.plan import Budget, Plan, Text
from wholegpt.planning.scaling import (
    COVERED_BLOCKS,
    COVERED_TOKENS,
    EARLY_SHARE,
    PILOT_STEPS,
    Difficulty,
    trained_tokens,
)
from wholegpt.planning.trial import run_trial
from wholegpt.settings.choices import AttentionKernel, Dtype
from wholegpt.settings.schema import Config
from wholegpt.training.memory import peak_tensor_bytes
from wholegpt.training.resolution import resolve

ALLOCATOR_BYTES = 128e6
"""Memory that the process needs in training besides its tensors: threads, compiled kernels, heap
fragmentation.
"""
PROGRAM_BYTES = 400e6 + ALLOCATOR_BYTES
"""Memory of Python, PyTorch and ``ALLOCATOR_BYTES``, for a process that cannot be measured here."""
BRIEF_SECONDS = 0.5
"""Seconds for measuring the speed of the pilot, which determines its number of steps."""
PILOT_SHARE, LONGEST_PILOT, FEWEST_PILOT_STEPS = 0.05, 10.0, 25
"""Share of the time, maximum seconds and minimum steps of the pilot."""
TRIAL_SHARE, LONGEST_TRIAL, SHORTEST_TRIAL = 0.05, 10.0, 1.0
"""Share of the time, maximum and minimum seconds, for measuring the speed of one size: docs/decisions.md."""
ANSWER_SECONDS = 28.0
"""A plan takes at most about this long, reading the text included, unless reading alone takes longer."""
PILOT_PART = 0.5
"""Maximum share of the remaining seconds until the answer for the pilot. The rest is for measuring speeds."""
PILOT_VALIDATION_TOKENS, TRIAL_VALIDATION_TOKENS = 50_000, 10_000


def make_plan(
    config: Config,
    data: PreparedData,
    budget: Budget,
    memory: float,
    console: Console,
) -> Plan:
    """Measure this machine and the text for some seconds, and plan what to train in the time of ``budget``.

    ``memory`` limits the memory of the process. If the time is too short for useful training, the plan is the smallest
    model, and says so. Raises ``ConfigError`` if not even that model fits into the memory; ``DataError`` if the text is
    too small.
    """
    text = Text.of(data)
    _refuse_too_small(text, data)
    pilot = resolve(pilot_config(config, text), data)
    device = torch.device(pilot.runtime.device)
    runtime.apply(pilot.runtime)
    resident = runtime.resident_bytes(device)
    memory = min(memory - resident, runtime.free_memory(device)) - ALLOCATOR_BYTES
    refuse_little_memory(pilot, text, memory)
    slowed = runtime.overload(pilot.runtime.threads)
    with console.working("measuring this machine"), runtime.memory_apart():
        speeds = Speeds(probe(device, pilot.precision.dtype))

    def measure(some: Config, seconds: float) -> None:
        with console.working("measuring the speed of a training step"), runtime.memory_apart():
            trial = run_trial(some, data, Silent(), TRIAL_VALIDATION_TOKENS, seconds)
        speeds.add(some, trial.rates)

    def time_left() -> float:
        return 60 * budget.minutes - budget.spent()

    measure(pilot, BRIEF_SECONDS)
    longest = min(PILOT_SHARE * 60 * budget.minutes, _pilot_seconds(budget.spent()))
    difficulty, rates = _run_pilot(config, data, console, speeds(pilot), longest)
    speeds.add(pilot, rates)
    chooser = Chooser(pilot, text, difficulty, speeds, memory)
    while True:
        choice = chooser.choose(time_left())
        too_short = choice is None
        choice = choice or chooser.least(time_left())
        config = resolve(choice.config, data)
        seconds = min(TRIAL_SHARE * time_left(), LONGEST_TRIAL, ANSWER_SECONDS - budget.spent())
        if speeds.has(config) or seconds < SHORTEST_TRIAL:
            break
        measure(config, seconds)
    needed = peak_tensor_bytes(config, config.training.micro_batch_size)
    peak = max(resident + ALLOCATOR_BYTES + needed, runtime.peak_bytes(device))
    notes = [f"{slowed}; the plan is for this speed"] if slowed else []
    if too_short:
        least = budget.spent() + _least_seconds(pilot, text, speeds(pilot))
        notes.append(f"too little time for useful training here; give at least {_in_minutes(least)} minutes")
    choice = dataclasses.replace(choice, config=config)
    return _plan(choice, text, difficulty, speeds, budget.minutes, budget.spent(), peak, True, notes)


def _refuse_too_small(text: Text, data: PreparedData) -> None:
    if min(text.train_tokens, text.validation_tokens * LEAST_TEXT / 2) < LEAST_TEXT:
        raise DataError(
            f"{data.manifest.corpus}: {text.train_tokens:,} tokens to train on and {text.validation_tokens} held out "
            f"are too few for --minutes, which plans from {LEAST_TEXT} and 2 on; give more text, or leave out "
            "--minutes and choose a small --model.context-length"
        )


def measure_difficulty(config: Config, data: PreparedData, spent: float, console: Console) -> Difficulty:
    """Measure how hard a text is by a short pilot training on it, ``spent`` seconds after the question."""
    _refuse_too_small(Text.of(data), data)
    pilot = resolve(pilot_config(config, Text.of(data)), data)
    with console.working("measuring the speed of a training step"), runtime.memory_apart():
        rates = run_trial(pilot, data, Silent(), TRIAL_VALIDATION_TOKENS, BRIEF_SECONDS).rates
    return _run_pilot(config, data, console, rates, _pilot_seconds(spent))[0]


def _pilot_seconds(spent: float) -> float:
    """Return the longest that a pilot may take when ``spent`` seconds have passed since the question."""
    return min(LONGEST_PILOT, PILOT_PART * (ANSWER_SECONDS - spent))


def _run_pilot(
    config: Config, data: PreparedData, console: Console, rates: Rates, seconds: float
) -> tuple[Difficulty, Rates]:
    """Train a pilot of known speed for so many ``seconds``; return the difficulty of the text, and a better speed."""
    steps = min(max(round(seconds / rates.step_seconds), FEWEST_PILOT_STEPS), PILOT_STEPS)
    pilot, early = resolve(pilot_config(config, Text.of(data), steps), data), max(1, steps // EARLY_SHARE)
    with console.progress("measuring how hard the text is", steps) as progress, runtime.memory_apart():
        trial = run_trial(pilot, data, progress, PILOT_VALIDATION_TOKENS, scored_after=(early,))
    return Difficulty.of_pilot(trial.validation_nats[early], trial.validation_nats[steps], steps), trial.rates


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
    pilot = pilot_config(base, text)
    longest = min(PILOT_SHARE * 60 * minutes, LONGEST_PILOT)
    spent = min(pilot.training.steps * speeds(pilot).step_seconds, longest)
    spent += min(TRIAL_SHARE * 60 * minutes, LONGEST_TRIAL)
    chooser = Chooser(base, text, difficulty, speeds, machine.memory - PROGRAM_BYTES)
    choice = chooser.choose(60 * minutes - spent)
    if choice is None:
        least = spent + _least_seconds(base, text, speeds(smallest_config(base, text)))
        raise ConfigError(
            f"--minutes is {minutes:g}, too few to train anything on this text and machine; the least that makes sense "
            f"is {_in_minutes(least)}"
        )
    needed = peak_tensor_bytes(choice.config, choice.config.training.micro_batch_size)
    peak = PROGRAM_BYTES + needed
    return _plan(choice, text, difficulty, speeds, minutes, spent, peak, False, [])


def _plan(
    choice: Choice,
    text: Text,
    difficulty: Difficulty,
    speeds: Speeds,
    minutes: float,
    spent: float,
    peak: float,
    measured: bool,
    notes: list[str],
) -> Plan:
    config, tokens, rates = choice.config, trained_tokens(choice.config), speeds(choice.config)
    train_seconds = rates.start_seconds + config.training.steps * rates.step_seconds
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
        seconds=spent + choice.seconds,
        train_seconds=train_seconds,
        other_seconds=choice.seconds - train_seconds,
        step_seconds=rates.step_seconds,
        tokens=tokens,
        epochs=tokens / text.train_tokens,
        peak_memory_bytes=int(peak),
        product_flops_per_second=speeds.machine.flops,
        bits_per_byte=choice.loss.times(1 / (math.log(2) * text.bytes_per_token)),
        difficulty=difficulty,
        useful_minutes=(spent + choice.seconds) / 60 if choice.enough else None,
        notes=tuple(notes),
    )


def _least_seconds(base: Config, text: Text, rates: Rates) -> float:
    """Compute the seconds of a run of the smallest model for the fewest useful steps."""
    return run_seconds(smallest_config(base, text), text, rates)


def _in_minutes(seconds: float) -> str:
    """Return the minutes with one decimal, rounded up."""
    return f"{math.ceil(seconds / 6 + 1) / 10:.1f}"
