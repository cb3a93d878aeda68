"""The run itself: precision, machine, checkpoints and logs."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from wholegpt.errors import ConfigError
from wholegpt.settings.choices import AttentionKernel, Determinism, Dtype, Execution, Tracker
from wholegpt.settings.sections.ranges import at_least, require

LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True)
class PrecisionConfig:
    """Numerical settings. They are resolved before the first step, and a resumed run keeps them."""

    dtype: Dtype = Dtype.automatic
    """Data type of matrix products. automatic: bfloat16 if the processor supports it, otherwise float32. float16 uses
    loss scaling."""
    attention: AttentionKernel = AttentionKernel.automatic
    """Attention kernel. automatic: blocked on a CPU (plain if compiled), fused on an accelerator."""
    execution: Execution = Execution.eager
    """eager, or compiled by torch.compile. Falls back to eager, with a warning, if compilation fails."""


@dataclass(frozen=True)
class RuntimeConfig:
    """Device, threads and seed. They are resolved before the first step, and a resumed run keeps them."""

    device: str = "automatic"
    """cpu, cuda, cuda:1, mps. automatic: an accelerator if there is one, otherwise the CPU."""
    threads: int = 0
    """Number of CPU threads. 0: PyTorch's default."""
    seed: int = 1337
    """Seed of all random numbers."""
    determinism: Determinism = Determinism.fast
    """strict: only deterministic operations, also on accelerators; slower and with more memory."""


@dataclass(frozen=True)
class CheckpointingConfig:
    """Checkpoints of the run."""

    every: int = 200
    """Steps between checkpoints, in addition to the one at the end or on interruption. 0: only that one."""
    keep: int = 2
    """Number of recent checkpoints to keep, in addition to the best one."""


@dataclass(frozen=True)
class LoggingConfig:
    """Metrics and samples during training."""

    every: int = 10
    """Steps between lines in metrics.jsonl."""
    sample_every: int = 200
    """Steps between samples, in addition to the one after the last step. 0: only after the last step."""
    sample_prompt: str = ""
    """Prompt of the samples. Empty: the end-of-text token, or a line break if the training text has fewer than 50
    documents."""
    sample_tokens: int = 120
    """Length of a sample in tokens. 0: no samples."""
    trackers: tuple[Tracker, ...] = ()
    """Programs that also get the metrics: tensorboard, wandb, trackio. One that fails does not stop the run."""


def check_run(runtime: RuntimeConfig, checkpointing: CheckpointingConfig, logging: LoggingConfig) -> None:
    """Raise ``ConfigError``, naming the setting, if a value is out of range."""
    at_least("runtime.threads", runtime.threads, 0)
    check_seed("runtime.seed", runtime.seed)
    at_least("checkpointing.every", checkpointing.every, 0)
    at_least("checkpointing.keep", checkpointing.keep, 1)
    at_least("logging.every", logging.every, 1)
    at_least("logging.sample_every", logging.sample_every, 0)
    at_least("logging.sample_tokens", logging.sample_tokens, 0)
    if len(set(logging.trackers)) < len(logging.trackers):
        raise ConfigError(f"logging.trackers is {', '.join(logging.trackers)}; name each tracker once")


def check_seed(name: str, seed: int) -> None:
    """Raise ``ConfigError`` if ``seed`` is outside the range of the random number generators."""
    require(name, seed, 0 <= seed <= LARGEST_SEED, f"of at least 0 and at most {LARGEST_SEED}")


PLANNED = (
    "model",
    "windows.length",
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
    if not isinstance(minutes, int | float):
        raise ConfigError(f"minutes is {minutes!r}; expected a number")
    if not 0 < minutes < math.inf:
        raise ConfigError(f"--minutes is {minutes:g}; expected a finite time above 0")
    decided = [name for name in named if name in PLANNED or name.partition(".")[0] in PLANNED]
    if decided:
        raise ConfigError(
            f"--minutes decides {', '.join(decided)} itself; leave it out, or leave out --minutes"
        )


def check_max_seconds(name: str, seconds: float | None) -> None:
    """Raise ``ConfigError`` if a time limit is given and is not above 0."""
    if seconds is not None:
        require(name, seconds, seconds > 0, "above 0")
