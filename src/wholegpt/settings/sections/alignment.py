"""Alignment: its settings, and the checks of each by itself."""

import dataclasses
import math
from dataclasses import dataclass

from wholegpt.errors import ConfigError
from wholegpt.settings.choices import PreferenceLoss
from wholegpt.settings.sections.ranges import require

DEFAULT_BETA = {
    PreferenceLoss.sigmoid: 0.1,
    PreferenceLoss.ipo: 0.1,
    PreferenceLoss.orpo: 0.1,
    PreferenceLoss.simpo: 2.0,
}


@dataclass(frozen=True)
class AlignmentConfig:
    """Learning from preferences (`align`)."""

    loss: PreferenceLoss = PreferenceLoss.sigmoid
    """Loss of a pair of a chosen and a rejected answer: sigmoid (DPO's, E19), ipo, orpo or simpo. The last two need no
    reference."""
    beta: float = 0.0
    """Scale β of the difference between the answers; sigmoid: a larger one keeps the model closer to the reference;
    orpo: the weight λ. 0: 0.1, or 2 for simpo."""
    margin: float = 1.0
    """simpo: the margin γ between the answers."""


def complete_alignment(alignment: AlignmentConfig) -> AlignmentConfig:
    """Return the settings with the default β of their loss, if none is given."""
    return dataclasses.replace(alignment, beta=alignment.beta or DEFAULT_BETA[alignment.loss])


def check_alignment(alignment: AlignmentConfig) -> None:
    """Raise ``ConfigError``, naming the setting, if a value is out of range."""
    for name in ("beta", "margin"):
        value = getattr(alignment, name)
        require(f"alignment.{name}", value, 0 <= value < math.inf, "of at least 0, and finite")
    if alignment.margin != AlignmentConfig.margin and alignment.loss is not PreferenceLoss.simpo:
        raise ConfigError(f"alignment.margin is for simpo, not for {alignment.loss}; leave it out")
