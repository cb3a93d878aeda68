"""A mixture of experts: several feed-forward layers, of which each token uses a few.

Shapes: N tokens, D model width, E experts, P experts per token, C tokens per expert, F feed-forward width.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from wholegpt.model.layers.feed_forward import ACTIVATIONS
from wholegpt.model.layers.linear import Linear
from wholegpt.runtime import at_least_float32
from wholegpt.settings.choices import Bias, FeedForward
from wholegpt.settings.schema import ModelConfig


class ExpertLinear(nn.Module):
    """x·W_eᵀ + b_e for the tokens of each expert e; the matrices are stacked."""

    def __init__(self, experts: int, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__()
        self.stacked_rows = [outputs] * experts
        self.weight = nn.Parameter(torch.empty(experts * outputs, inputs))
        self.bias = nn.Parameter(torch.empty(experts, outputs)) if bias else None

    def forward(self, x: Float[Tensor, "E C I"]) -> Float[Tensor, "E C O"]:
        """Return the layer's output for each token."""
        weight = self.weight.to(x.dtype).view(len(x), -1, x.shape[-1]).transpose(1, 2)
        return (
            torch.bmm(x, weight)
            if self.bias is None
            else torch.baddbmm(self.bias.to(x.dtype)[:, None], x, weight)
        )


def balance_loss(probabilities: Float[Tensor, "N E"], first: Int[Tensor, " N"]) -> Float[Tensor, " "]:
    """Compute E·Σ_e f_e·P_e, which is 1 for a uniform load (Fedus et al. 2022, equation 4).

    f_e is the share of tokens whose ``first`` choice is e, P_e the mean probability of e.
    """
    experts = probabilities.shape[1]
    shares = torch.bincount(first, minlength=experts) / len(first)
    return experts * (shares * probabilities.mean(dim=0)).sum()


def router_z_loss(logits: Float[Tensor, "N E"]) -> Float[Tensor, " "]:
    """Compute the mean of (ln Σ_e exp(logit_e))², which keeps logits small (Zoph et al. 2022, equation 5)."""
    return torch.logsumexp(logits, dim=-1).square().mean()


class MixtureOfExperts(nn.Module):
    """y = Σ_e g_e·FFN_e(x) over the P experts of the largest probability (Shazeer et al. 2017; Fedus et al.
    2022).

    p = softmax(W_r·x). g = p if P is 1, so that the router gets a gradient; otherwise g is p divided by its
    sum over the P chosen experts. In training an expert takes at most C = ⌈capacity_factor·P·N/E⌉ tokens,
    first choices first, then in order of position. In evaluation it takes all.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.experts, self.chosen = config.n_experts, config.experts_per_token
        self.capacity_factor = config.capacity_factor
        bias = config.bias is Bias.all
        sizes = config.n_experts, config.d_model, config.d_ff
        self.router = Linear(config.d_model, config.n_experts, bias=False)
        self.gate = ExpertLinear(*sizes, bias) if config.feed_forward is FeedForward.swiglu else None
        self.expand = ExpertLinear(*sizes, bias)
        self.output = ExpertLinear(config.n_experts, config.d_ff, config.d_model, bias)
        self.activation = ACTIVATIONS[config.feed_forward]
        self.losses: tuple[Tensor, Tensor] | None = None
        """``balance_loss`` and ``router_z_loss`` of the last forward pass in training."""
        self.load, self.dropped = torch.zeros(config.n_experts, dtype=torch.long), 0
        """Tokens per expert, and choices beyond the capacity, in training since the last ``expert_load``."""

    def forward(self, stream: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Return the layer's output at each position; 0 for a dropped token."""
        tokens = stream.flatten(0, 1)
        logits = at_least_float32(self.router(tokens))
        probabilities = torch.softmax(logits, dim=-1)
        weights, experts = probabilities.topk(self.chosen, dim=-1)
        if self.chosen > 1:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        load = torch.bincount(experts.flatten(), minlength=self.experts)
        fair = self.chosen * len(tokens) / self.experts
        capacity = math.ceil(self.capacity_factor * fair) if self.training else int(load.max())
        slots = queue_positions(experts, load)
        kept = slots < capacity
        if self.training:
            self.losses = balance_loss(probabilities, experts[:, 0]), router_z_loss(logits)
            self.load = self.load + load.cpu()
            self.dropped += int((~kept).sum())
        # Tokens beyond the capacity go to one extra slot, which is discarded.
        at = experts * (capacity + 1) + slots.clamp(max=capacity)
        queues = tokens.new_zeros(self.experts * (capacity + 1), tokens.shape[-1])
        queues = queues.index_copy(0, at.t().flatten(), tokens.repeat(self.chosen, 1))
        inputs = queues.view(self.experts, capacity + 1, -1)[:, :capacity]
        inner = self.expand(inputs)
        inner = self.activation(inner) if self.gate is None else self.activation(self.gate(inputs)) * inner
        outputs = F.pad(self.output(inner), (0, 0, 0, 1)).flatten(0, 1)
        mixed = outputs[at] * (weights * kept).unsqueeze(-1).to(outputs.dtype)
        return mixed.sum(dim=1).view_as(stream)


def queue_positions(experts: Int[Tensor, "N P"], load: Int[Tensor, " E"]) -> Int[Tensor, "N P"]:
    """Return how many choices of the same expert precede each choice: all first choices precede the second
    ones.
    """
    order = experts.t().flatten()
    by_expert = torch.argsort(order, stable=True)
    starts = load.cumsum(0) - load
    slots = torch.empty_like(order)
    slots[by_expert] = torch.arange(len(order), device=order.device) - starts[order[by_expert]]
    return slots.view(experts.shape[1], -1).t()


def mixtures(model: nn.Module) -> list[MixtureOfExperts]:
    """Return the mixtures of experts of a model, layer by layer."""
    return [module for module in model.modules() if isinstance(module, MixtureOfExperts)]


def router_losses(model: nn.Module, balance: float, z: float) -> Float[Tensor, " "] | float:
    """Compute ``balance``·Σ balance_loss + ``z``·Σ router_z_loss over the layers, from the last forward pass."""
    found = [mixture.losses for mixture in mixtures(model)]
    return sum((balance * one[0] + z * one[1] for one in found if one), 0.0)


def expert_load(model: nn.Module) -> dict[str, tuple[float, float]]:
    """Return routing statistics since the last call, as (sum over choices of experts, number of choices).

    ``dropped_share``: choices beyond the capacity. ``load_entropy``: −Σ_e f_e·ln f_e over ln E, with f the
    experts' shares of the choices, averaged over layers. It is 1 if all experts are used equally and 0 if
    only one is used.
    """
    found = [one for one in mixtures(model) if int(one.load.sum())]
    entropies: list[float] = []
    chosen = dropped = 0
    for one in found:
        shares = one.load / one.load.sum()
        entropies.append(float(torch.special.entr(shares).sum()) / math.log(max(len(shares), 2)))
        chosen, dropped = chosen + int(one.load.sum()), dropped + one.dropped
        one.load, one.dropped = torch.zeros_like(one.load), 0
    entropy = sum(entropies) / max(len(entropies), 1)
    return {"dropped_share": (dropped, chosen), "load_entropy": (entropy * chosen, chosen)}
