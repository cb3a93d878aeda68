"""Optimizers: AdamW (E9), fused and as a readable twin, and the choice of parameters for weight decay and Muon."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from wholegpt.errors import CheckpointError
from wholegpt.model import NeuralModel, TokenModel
from wholegpt.model.lora import partly_frozen
from wholegpt.settings.choices import Dtype, OptimizerKind
from wholegpt.settings.schema import Config, OptimizerConfig
from wholegpt.training.muon import Muon

UNTRAINED = "untrained"
"""The part that stands for an empty state of a parameter."""


def make_optimizer(
    model: nn.Module,
    config: OptimizerConfig,
    dtype: torch.dtype | None = None,
    head_learning_rate: float = 0.0,
) -> torch.optim.Optimizer:
    """Return the optimizer of the trainable parameters of ``model``; matrices decay, vectors do not.

    With Muon, the matrices of a transformer's blocks are its own; ``dtype`` is the one in which it makes them
    orthogonal, by default their own. The peak of the head's schedule is ``head_learning_rate``, unless that is 0.
    """
    head = model.head_parameters() if head_learning_rate and isinstance(model, TokenModel) else []
    parameters = [p for p in model.parameters() if p.requires_grad and not _among(p, head)]
    adamw = {
        "lr": config.learning_rate,
        "betas": (config.beta1, config.beta2),
        "eps": config.epsilon,
        "fused": True,
    }
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if decays(p)], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if not decays(p)], "weight_decay": 0.0},
    ]
    for parameter in head:
        decay = config.weight_decay if decays(parameter) else 0.0
        scale = head_learning_rate / config.learning_rate
        groups.append({"params": [parameter], "weight_decay": decay, "scale": scale})
    if config.kind is OptimizerKind.adamw:
        return torch.optim.AdamW([group for group in groups if group["params"]], **adamw)
    assert isinstance(model, NeuralModel)
    rows = {matrix: rows for matrix, rows in model.block_matrices() if matrix.requires_grad}
    groups[0]["params"] = [p for p in groups[0]["params"] if p not in rows]
    muon = {
        "params": list(rows),
        "rows": list(rows.values()),
        "momentum": config.momentum,
        "weight_decay": config.weight_decay,
    }
    return Muon([group for group in (muon, *groups) if group["params"]], dtype, **adamw)


def make_run_optimizer(model: nn.Module, config: Config) -> torch.optim.Optimizer:
    """Return the optimizer of a run with a resolved config; Muon multiplies in bfloat16 if the run does."""
    dtype = torch.bfloat16 if config.precision.dtype is Dtype.bfloat16 else None
    return make_optimizer(model, config.optimizer, dtype, config.finetuning.head_learning_rate)


def decays(parameter: nn.Parameter) -> bool:
    """Return whether a parameter has weight decay: matrices do, unless some of their rows are frozen."""
    return parameter.ndim >= 2 and not partly_frozen(parameter)


def _among(parameter: nn.Parameter, others: list[nn.Parameter]) -> bool:
    return any(parameter is one for one in others)


def adamw_update(
    parameter: Tensor,
    gradient: Tensor,
    mean: Tensor,
    mean_square: Tensor,
    step: int,
    learning_rate: float,
    config: OptimizerConfig,
) -> tuple[Tensor, Tensor, Tensor]:
    """Do one AdamW step (E9; Loshchilov and Hutter 2019, algorithm 2); the readable twin of the fused one.

    m ← β₁m + (1−β₁)g;  v ← β₂v + (1−β₂)g²;
    θ ← θ − η·λ·θ − η·(m/(1−β₁ᵗ)) / (√(v/(1−β₂ᵗ)) + ε), with t = ``step`` counted from 1.

    Returns the new (θ, m, v), all of the parameter's shape.
    """
    mean = config.beta1 * mean + (1 - config.beta1) * gradient
    mean_square = config.beta2 * mean_square + (1 - config.beta2) * gradient**2
    unbiased_mean = mean / (1 - config.beta1**step)
    unbiased_square = mean_square / (1 - config.beta2**step)
    decayed = parameter - learning_rate * config.weight_decay * parameter
    return (
        decayed - learning_rate * unbiased_mean / (unbiased_square.sqrt() + config.epsilon),
        mean,
        mean_square,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Set the learning rate of the next step; a group with a ``scale`` gets ``value`` times that."""
    for group in optimizer.param_groups:
        group["lr"] = value * group.get("scale", 1.0)


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Return the state of the optimizer as tensors, by the name of the parameter and of the part: ``NAME.exp_avg``.

    A parameter that was not trained yet has an empty tensor, ``NAME.untrained``.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in _named_parameters(optimizer, model).items():
        state = optimizer.state.get(parameter, {})
        tensors |= {f"{name}.{part}": torch.as_tensor(value).contiguous() for part, value in state.items()}
        if not state:
            tensors[f"{name}.{UNTRAINED}"] = torch.empty(0)
    return tensors


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, model: nn.Module, tensors: Mapping[str, Tensor]
) -> None:
    """Load what ``optimizer_tensors`` returned; no tensors at all are the state before the first step.

    Checkpoints of earlier versions number the parameters in the order of the optimizer's groups instead. Raises
    ``CheckpointError`` unless the tensors are of exactly the parameters of this optimizer, and of their shapes.
    """
    parameters = _named_parameters(optimizer, model)
    numbered = bool(tensors) and all(key.partition(".")[0].isdecimal() for key in tensors)
    if numbered:
        parameters = {str(number): one for number, one in enumerate(parameters_of(optimizer))}
    names = {key.rpartition(".")[0] for key in tensors}
    differing = names - parameters.keys() or (set() if numbered or not tensors else parameters.keys() - names)
    if differing:
        raise CheckpointError(
            f"the optimizer's state does not fit the model: {min(differing)[:100]} is in one of them only"
        )
    for key, tensor in tensors.items():
        name, _, part = key.rpartition(".")
        parameter = parameters[name]
        if part == UNTRAINED:
            continue
        if tensor.shape not in (parameter.shape, ()) or not tensor.is_floating_point():
            raise CheckpointError(
                f"the optimizer's state does not fit the model: {key[:100]} is {tensor.dtype} of shape "
                f"{tuple(tensor.shape)}"
            )
        optimizer.state[parameter][part] = tensor.to(parameter.device)


def parameters_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """Return the parameters that the optimizer updates, group by group."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _named_parameters(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the optimizer's parameters by their names in the model."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[parameter]: parameter for parameter in parameters_of(optimizer)}
