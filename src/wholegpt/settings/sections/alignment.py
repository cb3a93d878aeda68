"""Alignment: its settings, and the checks of each by itself."""

import dataclasses
import math
from dataclasses import dataclass

from wholegpt.errors import ConfigError
from wholegpt.settings.choices import AdvantageScale, PolicyNormalization, PreferenceLoss, TaskKind
from wholegpt.settings.sections.ranges import at_least, below_one, from_zero_to_one, require
from wholegpt.settings.sections.tasks import TASKS

DEFAULT_BETA = {
    PreferenceLoss.sigmoid: 0.1,
    PreferenceLoss.ipo: 0.1,
    PreferenceLoss.kto: 0.1,
    PreferenceLoss.orpo: 0.1,
    PreferenceLoss.simpo: 2.0,
}


@dataclass(frozen=True)
class AlignmentConfig:
    """Learning from preferences and rewards (`align`)."""

    loss: PreferenceLoss = PreferenceLoss.sigmoid
    """dpo: loss of a pair of a chosen and a rejected answer: sigmoid (DPO's, E19), ipo, kto, orpo or simpo. The last
    two need no reference."""
    beta: float = 0.0
    """dpo: scale β of the difference between the answers; sigmoid: a larger one keeps the model closer to the
    reference; orpo: the weight λ. 0: 0.1, or 2 for simpo."""
    margin: float = 1.0
    """simpo: the margin γ between the answers."""
    centering: float = 0.01
    """reward: weight of the squared sum of the two rewards of a pair (E18), which draws their mean towards 0."""
    rewards: tuple[str, ...] = ()
    """ppo, grpo: what completions are rewarded for (--reward), optionally with weights: 0.5*exact."""
    group_size: int = 8
    """grpo: completions per prompt."""
    rollout_size: int = 64
    """ppo, grpo: completions per rollout."""
    rollout_epochs: int = 1
    """ppo, grpo: epochs over each rollout."""
    completion_tokens: int = 128
    """ppo, grpo: most tokens of a completion."""
    temperature: float = 1.0
    """ppo, grpo: temperature of the rollouts."""
    clip: float = 0.2
    """ppo, grpo: ε, how far the probability ratio may move before its gradient ends (E21)."""
    clip_higher: float = 0.0
    """ppo, grpo: ε of ratios above 1. 0: as --alignment.clip."""
    kl: float = 0.0
    """ppo, grpo: weight of the KL divergence from the reference; ppo subtracts it from the reward of each token, grpo
    adds it to the loss."""
    kl_target: float = 0.0
    """ppo: KL divergence, in nats per completion, that --alignment.kl is adapted to. 0: fixed weight."""
    kl_limit: float = 0.0
    """ppo, grpo: stop early when the mean KL divergence of a step's completions exceeds this many nats per completion.
    0: never."""
    unfinished_penalty: float = 0.0
    """ppo, grpo: subtracted from the reward of a completion that does not end within --alignment.completion-tokens and
    the context."""
    advantage_scale: AdvantageScale = AdvantageScale.group
    """grpo: divide the advantages by the standard deviation of the group's rewards (group), or not (none)."""
    normalization: PolicyNormalization = PolicyNormalization.token
    """ppo, grpo: the loss is a mean over all tokens, over the means of sequences, or a sum over tokens divided by a
    constant."""
    discount: float = 1.0
    """ppo: γ of the advantages (E20)."""
    trace: float = 0.95
    """ppo: λ of the advantages (E20)."""
    value_clip: float = 0.2
    """ppo: how far a value may move before its gradient ends."""
    value_weight: float = 1.0
    """ppo: weight of the value loss."""


MOST = 2**20
"""Largest rollout, number of its epochs, and number of tokens of a completion."""


def complete_alignment(alignment: AlignmentConfig) -> AlignmentConfig:
    """Return the settings with the default β of their loss, if none is given."""
    return dataclasses.replace(alignment, beta=alignment.beta or DEFAULT_BETA[alignment.loss])


def check_alignment(alignment: AlignmentConfig) -> None:
    """Raise ``ConfigError``, naming the setting, if a value is out of range."""
    for name in ("beta", "margin", "centering", "kl", "kl_target", "kl_limit", "unfinished_penalty"):
        value = getattr(alignment, name)
        require(f"alignment.{name}", value, 0 <= value < math.inf, "of at least 0, and finite")
    for name in ("value_clip", "value_weight"):
        value = getattr(alignment, name)
        require(f"alignment.{name}", value, 0 < value < math.inf, "above 0, and finite")
    for name in ("rollout_size", "rollout_epochs", "completion_tokens"):
        value = getattr(alignment, name)
        require(f"alignment.{name}", value, 1 <= value <= MOST, f"from 1 to {MOST:,}")
    at_least("alignment.group_size", alignment.group_size, 2)
    for name in ("discount", "trace"):
        from_zero_to_one(f"alignment.{name}", getattr(alignment, name))
    below_one("alignment.clip", alignment.clip)
    below_one("alignment.clip_higher", alignment.clip_higher)
    temperature = alignment.temperature
    require(
        "alignment.temperature",
        temperature,
        0 < temperature < math.inf,
        "above 0, so that completions differ",
    )
    if alignment.margin != AlignmentConfig.margin and alignment.loss is not PreferenceLoss.simpo:
        raise ConfigError(f"alignment.margin is for simpo, not for {alignment.loss}; leave it out")


def check_method(alignment: AlignmentConfig, task: TaskKind) -> None:
    """Raise ``ConfigError`` for a setting that the method does not use, or that it needs and lacks."""
    used, default = TASKS[task].alignment, AlignmentConfig()
    for field in dataclasses.fields(alignment):
        if field.name not in used and getattr(alignment, field.name) != getattr(default, field.name):
            if not used:
                raise ConfigError(
                    f"alignment.{field.name} is for `wholegpt align`, not for {task}; leave it out"
                )
            methods = " and ".join(kind for kind, those in TASKS.items() if field.name in those.alignment)
            raise ConfigError(f"alignment.{field.name} is for {methods}, not for {task}; leave it out")
    if alignment.kl_target and not alignment.kl:
        raise ConfigError(
            "alignment.kl_target adapts alignment.kl, which is 0 and would stay so; set it, too, for example to 0.05"
        )
    if TASKS[task].rollouts and not alignment.rewards:
        raise ConfigError(
            f"{task} needs a reward for the completions; give --reward, for example --reward exact (in Python, "
            "rewards=['exact'])"
        )
    if "group_size" in used and alignment.rollout_size % alignment.group_size:
        raise ConfigError(
            f"alignment.rollout_size is {alignment.rollout_size}; expected a multiple of alignment.group_size, "
            f"{alignment.group_size}, the completions of a prompt"
        )
