"""The objective of PPO and GRPO, and the advantages of a rollout.

Shapes: N completions of a rollout, B of a batch, T positions.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from wholegpt.losses import (
    clipped_policy_loss,
    clipped_value_loss,
    generalized_advantages,
    group_advantages,
    kl_estimate_1,
    kl_estimate_2,
    token_weights,
    whitened,
)
from wholegpt.model import NeuralModel
from wholegpt.settings.choices import TaskKind
from wholegpt.settings.schema import AlignmentConfig
from wholegpt.stages.alignment.rollout import PolicyBatch, policy_outputs
from wholegpt.training.objectives import Terms

LOSS = "policy_loss"
LARGEST_WEIGHT = 2.0
"""Bound of the importance weight between the training and the generation of a token."""
ADAPTATION = 0.1
"""How much the KL weight changes per relative deviation from its target (Ziegler et al. 2019, section 2.2)."""


class PolicyObjective:
    """Clipped policy loss (E21), with the KL divergence (GRPO) or the value loss (PPO) added; a term is a token or a
    completion (``losses.token_weights``).

    Each token's policy loss is multiplied by min(π_old/π_sampled, 2), without a gradient: π_old is computed as in
    training, π_sampled while generating. Their differences are caused by rounding and by special tokens that are
    excluded from sampling.
    """

    unit = LOSS

    def __init__(self, settings: AlignmentConfig, task: TaskKind) -> None:
        self.settings, self.task = settings, task

    def count(self, batch: PolicyBatch) -> int:
        """Return the number of tokens or of completions, as the normalization requires."""
        return self._weights(batch)[1]

    def __call__(self, model: nn.Module, batch: PolicyBatch) -> Terms:
        """Return the sum of the losses of the tokens, weighted as the normalization requires."""
        assert isinstance(model, NeuralModel)
        settings, given, mask = self.settings, batch.tensors, batch.mask.float()
        weights, count = self._weights(batch)
        log_p, values = policy_outputs(model, batch.token_ids, batch.targets, settings.temperature)
        importance = (given["old_log_p"] - given["sampled_log_p"]).exp().clamp_max(LARGEST_WEIGHT)
        losses = importance * clipped_policy_loss(
            log_p, given["old_log_p"], given["advantages"], settings.clip, settings.clip_higher
        )
        if self.task is TaskKind.grpo and settings.kl:
            losses = losses + settings.kl * kl_estimate_2(log_p, given["reference_log_p"])
        metrics: dict[str, tuple[Tensor | float, float]] = {}
        if values is not None:
            of_values = clipped_value_loss(values, given["values"], given["returns"], settings.value_clip)
            losses = losses + settings.value_weight * of_values
            metrics["value_loss"] = (of_values * mask).sum().detach(), float(mask.sum())
        total = (losses * weights).sum()
        return Terms(
            total, {LOSS: (total.detach(), count), **self._update_metrics(log_p, batch, mask), **metrics}
        )

    def _weights(self, batch: PolicyBatch) -> tuple[Float[Tensor, "B T"], int]:
        return token_weights(batch.mask.float(), self.settings.normalization, self.settings.completion_tokens)

    @torch.no_grad()
    def _update_metrics(
        self, log_p: Float[Tensor, "B T"], batch: PolicyBatch, mask: Float[Tensor, "B T"]
    ) -> dict[str, tuple[Tensor | float, float]]:
        """Return the share of clipped tokens, and the means of the figures of the completions in the rollout."""
        settings, given, tokens = self.settings, batch.tensors, float(mask.sum())
        ratios = (log_p - given["old_log_p"]).exp()
        higher = settings.clip_higher or settings.clip
        outside = ((ratios < 1 - settings.clip) & (given["advantages"] < 0)) | (
            (ratios > 1 + higher) & (given["advantages"] > 0)
        )
        rounding = (given["old_log_p"] - given["sampled_log_p"]).abs() * mask
        lengths = mask.sum(1)
        return {
            "clip_fraction": ((outside * mask).sum(), tokens),
            "ratio": ((ratios * mask).sum(), tokens),
            "generation_difference_nats": (rounding.sum(), tokens),
            "entropy": (-(given["old_log_p"] * mask).sum(), tokens),
            "completion_tokens": (lengths.sum(), len(batch)),
            **{name: (given[name].sum(), len(batch)) for name in sorted(given) if given[name].ndim == 1},
        }


def kl_per_completion(
    log_p: Float[Tensor, "N T"], reference_log_p: Float[Tensor, "N T"], mask: Float[Tensor, "N T"]
) -> Float[Tensor, " N"]:
    """Return an estimate of KL(π‖π_ref) of each completion in nats: the sum of k1 over its tokens.

    k3 would be dominated by single tokens that the reference finds far likelier.
    """
    return (kl_estimate_1(log_p, reference_log_p) * mask).sum(1)


def adapted_kl(weight: float, kl: float, target: float) -> float:
    """Return the KL weight after a rollout with a mean ``kl``: multiplied by 1 + 0.1·clip(kl/target − 1, −0.2, 0.2)
    (Ziegler et al. 2019, section 2.2). Without a ``target``, it stays.
    """
    if not target:
        return weight
    error = min(max(kl / target - 1, -0.2), 0.2)
    return weight * (1 + ADAPTATION * error)


def grpo_advantages(
    rewards: Float[Tensor, " N"], mask: Float[Tensor, "N T"], settings: AlignmentConfig
) -> dict[str, Tensor]:
    """Return ``advantages`` of each token, that of its completion in its group (E22), and ``no_variance``.

    The latter is 1 for the completions of a group whose rewards are all equal, from which nothing is learned. The
    completions of a prompt follow each other.
    """
    groups = rewards.view(-1, settings.group_size)
    advantages = group_advantages(groups, settings.advantage_scale).flatten()
    constant = (groups == groups[:, :1]).all(dim=1).repeat_interleave(settings.group_size)
    return {"advantages": advantages[:, None] * mask, "no_variance": constant.float()}


def ppo_advantages(
    rewards: Float[Tensor, " N"],
    given: Mapping[str, Tensor],
    mask: Float[Tensor, "N T"],
    settings: AlignmentConfig,
    kl_weight: float,
) -> dict[str, Tensor]:
    """Return ``advantages`` (E20, whitened) and ``returns`` of each token, and ``explained_variance`` of each
    completion.

    The reward of a token is −``kl_weight``·k1; the last one of a completion also gets the completion's reward. The
    explained variance is 1 − Var(R − V)/Var(R) over all tokens of the rollout.
    """
    # Completions start at different positions; shifted to position 0, padding only follows them.
    starts = mask.argmax(dim=1, keepdim=True)
    index = (torch.arange(mask.shape[1]) + starts).clamp_max(mask.shape[1] - 1)
    lengths = mask.sum(1, keepdim=True)
    inside = (torch.arange(mask.shape[1]) < lengths).float()
    penalties = -kl_weight * kl_estimate_1(given["old_log_p"], given["reference_log_p"])
    token_rewards, values = (one.gather(1, index) * inside for one in (penalties, given["values"]))
    token_rewards.scatter_add_(1, lengths.long() - 1, rewards[:, None])
    advantages = generalized_advantages(token_rewards, values, inside, settings.discount, settings.trace)
    returns = advantages + values
    spread = returns[inside > 0].var()
    explained = 1 - (returns - values)[inside > 0].var() / spread if spread > 0 else torch.zeros(())

    def back(shifted: Float[Tensor, "N T"]) -> Float[Tensor, "N T"]:
        """Return a tensor at the positions of the completions."""
        whole = torch.zeros_like(mask)
        whole[mask > 0] = shifted[inside > 0]  # both are in the order of completions and tokens
        return whole

    return {
        "advantages": back(whitened(advantages, inside)),
        "returns": back(returns),
        "explained_variance": explained.expand(len(mask)).clone(),
    }
