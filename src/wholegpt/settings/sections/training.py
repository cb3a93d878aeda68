"""Training: steps, batches, optimizer, schedule and evaluation."""

import dataclasses
from dataclasses import dataclass

from wholegpt.errors import ConfigError
from wholegpt.settings.choices import ActivationCheckpointing, OptimizerKind, ScheduleKind
from wholegpt.settings.sections.ranges import at_least, below_one, from_zero_to_one, require

LEARNING_RATES = {OptimizerKind.muon: 6e-3, OptimizerKind.adamw: 2e-3}
WARMUP_SHARE, MOST_WARMUP_STEPS = 0.1, 20


@dataclass(frozen=True)
class TrainingConfig:
    """Length of the training and sizes of the batches."""

    steps: int = 1000
    """Number of optimizer steps. 0: computed from epochs."""
    epochs: float = 0.0
    """Number of epochs, if steps is 0."""
    batch_size: int = 8
    """Windows (or examples) per optimizer step."""
    initial_batch_size: int = 0
    """Batch size of the first step; it grows linearly to batch_size. 0: batch_size from the start."""
    batch_growth_steps: int = 0
    """Number of steps in which the batch size grows."""
    micro_batch_size: int = 0
    """Windows per forward pass; gradients are accumulated over the batch. 0: as many as fit into memory."""
    gradient_clip: float = 1.0
    """Maximum global L2 norm of the gradient. 0: no clipping."""
    ema_decay: float = 0.0
    """Decay of an exponential moving average of the weights, which evaluation, samples and checkpoints then use.
    0: no averaging."""
    balance_loss: float = 0.01
    """Weight of the load-balancing loss of a mixture of experts."""
    router_z_loss: float = 0.001
    """Weight of the router z-loss of a mixture of experts."""
    activation_checkpointing: ActivationCheckpointing = ActivationCheckpointing.none
    """Recompute the activations of the blocks in the backward pass: less memory, about a third more computation."""


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with decoupled weight decay (E9), or Muon for the matrices of the blocks."""

    kind: OptimizerKind = OptimizerKind.muon
    """adamw for all parameters, or muon for the matrices of the blocks and AdamW for the others."""
    learning_rate: float = 0.0
    """Peak learning rate. 0: 0.006 for muon, 0.002 for adamw."""
    beta1: float = 0.9
    """AdamW: decay of the first moment."""
    beta2: float = 0.95
    """AdamW: decay of the second moment."""
    epsilon: float = 1e-8
    """AdamW: value added to the denominator for numerical stability. Above 0."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices, multiplied by the learning rate. Vectors are not decayed."""
    momentum: float = 0.95
    """Muon: momentum."""


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate over the steps (E10)."""

    kind: ScheduleKind = ScheduleKind.cosine
    """Shape after the warm-up."""
    warmup_steps: int = 0
    """Steps of linear warm-up. 1: no warm-up. 0: a tenth of all steps, at most 20; this also replaces a warm-up as
    long as the run."""
    final_fraction: float = 0.1
    """Final learning rate of cosine and warmup_stable_decay, as a share of the peak."""
    decay_fraction: float = 0.2
    """Share of the steps in which warmup_stable_decay decays."""


@dataclass(frozen=True)
class EvaluationConfig:
    """Evaluation on the validation text during training."""

    every: int = 100
    """Steps between evaluations, in addition to the one after the last step. 0: only after the last step."""
    tokens: int = 20_000
    """Validation tokens per evaluation during training, in windows spread over the whole text. 0: all tokens."""
    patience: int = 5
    """Early stopping: evaluations without improvement until training stops. 0: no early stopping."""


def complete_optimizer(optimizer: OptimizerConfig) -> OptimizerConfig:
    """Return ``optimizer`` with the default learning rate of its kind in place of 0."""
    return dataclasses.replace(
        optimizer, learning_rate=optimizer.learning_rate or LEARNING_RATES[optimizer.kind]
    )


def complete_schedule(schedule: ScheduleConfig, steps: int) -> ScheduleConfig:
    """Return ``schedule`` for a run of ``steps``, with a warm-up that reaches the peak before the last step.

    A warm-up of 0, and one that is as long as the run, becomes a tenth of the steps, at most 20.
    """
    warmup = schedule.warmup_steps
    if warmup == 0 or warmup >= max(steps - 1, 2):
        warmup = min(int(WARMUP_SHARE * steps), MOST_WARMUP_STEPS)
    return dataclasses.replace(schedule, warmup_steps=warmup)


def check_training(training: TrainingConfig) -> None:
    """Raise ``ConfigError``, naming the setting, if steps, epochs or batch sizes are invalid."""
    for name in ("steps", "epochs", "micro_batch_size", "batch_growth_steps"):
        at_least(f"training.{name}", getattr(training, name), 0)
    if (training.steps == 0) == (training.epochs == 0):
        raise ConfigError(
            f"training.steps is {training.steps} and training.epochs is {training.epochs:g}; "
            "set exactly one of them and leave the other 0"
        )
    at_least("training.batch_size", training.batch_size, 1)
    first = training.initial_batch_size
    expected = f"from 0 to training.batch_size, {training.batch_size}"
    require("training.initial_batch_size", first, 0 <= first <= training.batch_size, expected)
    if bool(first) != bool(training.batch_growth_steps):
        raise ConfigError(
            f"training.initial_batch_size is {first} and training.batch_growth_steps is "
            f"{training.batch_growth_steps}; set both for a batch that grows, or neither"
        )
    below_one("training.ema_decay", training.ema_decay)
    for name in ("gradient_clip", "balance_loss", "router_z_loss"):
        at_least(f"training.{name}", getattr(training, name), 0)


def check_optimizer(optimizer: OptimizerConfig) -> None:
    """Raise ``ConfigError``, naming the setting, if a value is out of range."""
    at_least("optimizer.learning_rate", optimizer.learning_rate, 0)
    for name in ("beta1", "beta2", "momentum"):
        below_one(f"optimizer.{name}", getattr(optimizer, name))
    require("optimizer.epsilon", optimizer.epsilon, optimizer.epsilon > 0, "above 0")
    at_least("optimizer.weight_decay", optimizer.weight_decay, 0)


def check_schedule(schedule: ScheduleConfig) -> None:
    """Raise ``ConfigError``, naming the setting, if a value is out of range."""
    at_least("schedule.warmup_steps", schedule.warmup_steps, 0)
    for name in ("final_fraction", "decay_fraction"):
        from_zero_to_one(f"schedule.{name}", getattr(schedule, name))


def check_evaluation(evaluation: EvaluationConfig) -> None:
    """Raise ``ConfigError``, naming the setting, if a value is out of range."""
    for name in ("every", "tokens", "patience"):
        at_least(f"evaluation.{name}", getattr(evaluation, name), 0)
