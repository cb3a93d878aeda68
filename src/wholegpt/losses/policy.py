"""Losses of reinforcement learning, and the quantities they are made of.

Shapes: B completions, T tokens each, padded; G prompts with K completions each. A ``mask`` is 1 for the tokens of a
completion and 0 for the padding after them. Log-probabilities are of single tokens, in nats: ln π under the trained
model, ln π_old under the model that generated them.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from wholegpt.settings.choices import AdvantageScale, PolicyNormalization

SMALLEST_DEVIATION = 1e-4
"""Added to the standard deviation of a group's rewards before dividing by it."""


def clipped_policy_loss(
    log_probabilities: Float[Tensor, "B T"],
    old_log_probabilities: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    clip: float = 0.2,
    clip_higher: float = 0.0,
) -> Float[Tensor, "B T"]:
    """Compute −min(ρ·Â, clip(ρ, 1 − ε, 1 + ε')·Â) of each token, with ρ = π/π_old (E21; Schulman et al. 2017, equation
    7).

    ε is ``clip``, and ε' is ``clip_higher``, or ε if that is 0 (Yu et al. 2025, equation 10).
    """
    ratios = (log_probabilities - old_log_probabilities).exp()
    clipped = ratios.clamp(1 - clip, 1 + (clip_higher or clip))
    return -torch.minimum(ratios * advantages, clipped * advantages)


def clipped_value_loss(
    values: Float[Tensor, "B T"],
    old_values: Float[Tensor, "B T"],
    returns: Float[Tensor, "B T"],
    clip: float = 0.2,
) -> Float[Tensor, "B T"]:
    """Compute ½·max((V − R)², (clip(V, V_old − ε, V_old + ε) − R)²) of each token.

    ``old_values`` are those at the time of the rollout, ``returns`` (R) their advantages plus these values (Schulman et
    al. 2016; the clipping is that of OpenAI's implementation of PPO).
    """
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    return torch.maximum((values - returns) ** 2, (clipped - returns) ** 2) / 2


def generalized_advantages(
    rewards: Float[Tensor, "B T"],
    values: Float[Tensor, "B T"],
    mask: Float[Tensor, "B T"],
    discount: float,
    trace: float,
) -> Float[Tensor, "B T"]:
    """Compute Â_t = Σ_k (γλ)^k·δ_{t+k}, with δ_t = r_t + γ·V_{t+1} − V_t (E20; Schulman et al. 2016, equation 16).

    ``discount`` is γ and ``trace`` is λ. After the last token of a completion, V is 0. Padding has the advantage 0.
    """
    advantages, following, value = torch.zeros_like(rewards), rewards.new_zeros(len(rewards)), 0.0
    for t in reversed(range(rewards.shape[1])):
        error = rewards[:, t] + discount * value - values[:, t]
        following = mask[:, t] * (error + discount * trace * following)
        advantages[:, t], value = following, mask[:, t] * values[:, t]
    return advantages


def whitened(values: Float[Tensor, "B T"], mask: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Return ``values`` shifted and scaled to mean 0 and variance 1 over the unmasked tokens; 0 for padding."""
    count = mask.sum()
    centered = (values - (values * mask).sum() / count) * mask
    return centered / ((centered**2).sum() / count + 1e-8).sqrt()


def group_advantages(
    rewards: Float[Tensor, "G K"], scale: AdvantageScale = AdvantageScale.group
) -> Float[Tensor, "G K"]:
    """Compute (r − mean) / (std + 1e-4) of the rewards of each prompt's K completions (E22; Shao et al. 2024, section
    4.1.2).

    ``std`` divides by K − 1. With ``AdvantageScale.none``, the differences are not divided (Liu et al. 2025, section
    3). In both cases a group of equal rewards has the advantages 0.
    """
    shifted = rewards - rewards[:, :1]  # exactly 0 for equal rewards, whose mean is rounded
    centered = shifted - shifted.mean(dim=1, keepdim=True)
    if scale is AdvantageScale.none:
        return centered
    return centered / (shifted.std(dim=1, keepdim=True) + SMALLEST_DEVIATION)


def token_weights(
    mask: Float[Tensor, "B T"], normalization: PolicyNormalization, longest: int
) -> tuple[Float[Tensor, "B T"], int]:
    """Return weights w and a count n, so that Σ w·loss / n is the normalized loss of a batch.

    ``token``: the mean over all tokens (Yu et al. 2025, equation 12). ``sequence``: the mean over completions of the
    means over their tokens, so that a token of a long completion counts less (Shao et al. 2024, equation 3).
    ``constant``: the sum over tokens, divided by the number of completions and by ``longest``, the largest number of
    tokens that a completion may have (Liu et al. 2025). Sums over the parts of a batch add up to those of the batch.
    """
    match normalization:
        case PolicyNormalization.token:
            return mask, int(mask.sum())
        case PolicyNormalization.sequence:
            return mask / mask.sum(dim=1, keepdim=True).clamp_min(1), len(mask)
        case PolicyNormalization.constant:
            return mask / longest, len(mask)


def kl_estimate_1(
    log_probabilities: Float[Tensor, "B T"], reference_log_probabilities: Float[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """Compute k1 = ln π − ln π_ref, whose mean over samples of π is KL(π‖π_ref) (Schulman 2020).

    Use it as a penalty in the reward. As a loss, its gradient is 0 on average.
    """
    return log_probabilities - reference_log_probabilities


def kl_estimate_2(
    log_probabilities: Float[Tensor, "B T"], reference_log_probabilities: Float[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """Compute k2 = ½·(ln π − ln π_ref)². Over samples of π, its gradient has the mean ∇KL(π‖π_ref); its value is biased
    (Schulman 2020).
    """
    return (log_probabilities - reference_log_probabilities) ** 2 / 2


def kl_estimate_3(
    log_probabilities: Float[Tensor, "B T"], reference_log_probabilities: Float[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """Compute k3 = π_ref/π − 1 − ln(π_ref/π), which is never negative and has the mean KL(π‖π_ref) over samples of π
    (Schulman 2020).

    As a loss, its mean gradient is that of KL(π_ref‖π).
    """
    log_ratios = reference_log_probabilities - log_probabilities
    return log_ratios.expm1() - log_ratios
