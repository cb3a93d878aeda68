"""Losses of preference pairs: a chosen and a rejected completion of one prompt.

Shapes: B pairs or completions. ln π(y) is the log-probability of a completion under the trained model, the sum over its
tokens, and ln π_ref(y) that under the frozen reference. Δ = ln π(y) − ln π_ref(y) is the log-ratio. All are in nats.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def bradley_terry(
    chosen: Float[Tensor, " B"],
    rejected: Float[Tensor, " B"],
    margins: Float[Tensor, " B"] | float = 0.0,
    centering: float = 0.0,
) -> Float[Tensor, " B"]:
    """Compute −ln σ(r_c − r_r − m) + κ·(r_c + r_r)² of the rewards of each pair (E18).

    The first term is the negative log-likelihood of the preference (Bradley and Terry 1952; the margin m is from
    Touvron et al. 2023, equation 2). It does not change if a constant is added to all rewards; ``centering`` (κ) draws
    their mean towards 0 (Eisenstein et al. 2023, section 3.2).
    """
    return centering * (chosen + rejected) ** 2 - F.logsigmoid(chosen - rejected - margins)


def dpo_loss(
    chosen_ratios: Float[Tensor, " B"], rejected_ratios: Float[Tensor, " B"], beta: float
) -> Float[Tensor, " B"]:
    """Compute −ln σ(β·(Δ_c − Δ_r)) (E19; Rafailov et al. 2023, equation 7).

    β·Δ is the implicit reward of a completion. If the model equals the reference, each loss is ln 2.
    """
    return -F.logsigmoid(beta * (chosen_ratios - rejected_ratios))


def ipo_loss(
    chosen_ratios: Float[Tensor, " B"],
    rejected_ratios: Float[Tensor, " B"],
    chosen_lengths: Int[Tensor, " B"],
    rejected_lengths: Int[Tensor, " B"],
    beta: float,
) -> Float[Tensor, " B"]:
    """Compute (Δ_c/|y_c| − Δ_r/|y_r| − 1/(2·β))², where |y| is the number of tokens of a completion.

    The paper has sums instead of means over tokens (Azar et al. 2023, equation 17); with means, β does not depend on
    the length, as in TRL.
    """
    difference = chosen_ratios / chosen_lengths - rejected_ratios / rejected_lengths
    return (difference - 1 / (2 * beta)) ** 2


def kto_loss(
    ratios: Float[Tensor, " B"],
    desirable: Float[Tensor, " B"],
    divergence: Float[Tensor, ""] | float,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Float[Tensor, " B"]:
    """Compute λ_D·(1 − σ(β·(Δ − z))) of desirable completions, and λ_U·(1 − σ(β·(z − Δ))) of the others.

    ``desirable`` is 1 or 0. ``divergence`` (z) is an estimate of KL(π‖π_ref) in nats per completion, without a
    gradient: the mean of Δ over completions of other prompts, at least 0. Completions need not come in pairs
    (Ethayarajh et al. 2024, equation 8).
    """
    gains = beta * (ratios - divergence)
    wanted, unwanted = 1 - gains.sigmoid(), 1 - (-gains).sigmoid()
    return desirable * desirable_weight * wanted + (1 - desirable) * undesirable_weight * unwanted


def orpo_loss(
    chosen_log_probabilities: Float[Tensor, " B"],
    rejected_log_probabilities: Float[Tensor, " B"],
    chosen_lengths: Int[Tensor, " B"],
    rejected_lengths: Int[Tensor, " B"],
    weight: float,
) -> Float[Tensor, " B"]:
    """Compute −ln p̄_c − λ·ln σ(ln odds(p̄_c) − ln odds(p̄_r)), with ``weight`` λ and odds(p) = p/(1 − p).

    p̄ = exp(ln π(y)/|y|) is the geometric mean of the token probabilities. There is no reference; the first term is the
    usual loss of the chosen completion, in nats per token (Hong et al. 2024, equations 6 and 7).
    """
    chosen, rejected = (
        chosen_log_probabilities / chosen_lengths,
        rejected_log_probabilities / rejected_lengths,
    )
    log_odds_ratios = chosen - rejected - (_log_complement(chosen) - _log_complement(rejected))
    return -chosen - weight * F.logsigmoid(log_odds_ratios)


def simpo_loss(
    chosen_log_probabilities: Float[Tensor, " B"],
    rejected_log_probabilities: Float[Tensor, " B"],
    chosen_lengths: Int[Tensor, " B"],
    rejected_lengths: Int[Tensor, " B"],
    beta: float,
    margin: float,
) -> Float[Tensor, " B"]:
    """Compute −ln σ(β·(ln π(y_c)/|y_c| − ln π(y_r)/|y_r|) − γ), with ``margin`` γ and without a reference.

    Meng et al. 2024, equation 6.
    """
    difference = chosen_log_probabilities / chosen_lengths - rejected_log_probabilities / rejected_lengths
    return -F.logsigmoid(beta * difference - margin)


def _log_complement(log_p: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Return ln(1 − p), without cancellation for p near 0 or 1. A p that rounds to 1 counts as the largest below 1."""
    return (-log_p.clamp_max(-torch.finfo(log_p.dtype).eps).expm1()).log()
