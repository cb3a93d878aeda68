"""Fine-tuning for tasks (Radford et al. 2018, section 3.2): the loss, and the forward pass with a head.

Shapes: B examples, C sequences of each, T positions, D model width, O outputs.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from wholegpt.data.examples.batches import TaskBatch
from wholegpt.losses import IGNORED, class_negative_log_likelihood, squared_error
from wholegpt.model import TaskModel
from wholegpt.settings.choices import TaskKind
from wholegpt.training.objectives import Terms


class TaskObjective:
    """E11: L = L_task + λ·L_LM; a term is an example.

    L_task is −ln p of the right class or answer in nats, or the squared error of a score; L_LM the mean over
    its sequences of the mean nats per token.
    """

    unit = "loss"

    def __init__(
        self,
        task: TaskKind,
        language_modeling: float,
        scores: bool = False,
        class_weights: Float[Tensor, " O"] | None = None,
    ) -> None:
        """``language_modeling`` is λ. With ``scores``, targets are real numbers instead of classes."""
        self.task, self.language_modeling = task, language_modeling
        self.scores, self.class_weights = scores, class_weights

    def count(self, batch: TaskBatch) -> int:
        """Return the number of examples."""
        return len(batch)

    def __call__(self, model: nn.Module, batch: TaskBatch) -> Terms:
        """Return the sum over the examples."""
        assert isinstance(model, TaskModel)
        hidden, outputs = model.task_outputs(batch.token_ids, batch.last, batch.second, is_summed(self.task))
        if self.scores:
            losses = squared_error(outputs, batch.targets)
        else:
            losses = class_negative_log_likelihood(outputs, batch.targets, self.class_weights)
        total = losses.sum()
        if self.language_modeling:
            targets, importance = next_tokens(batch)
            total = total + self.language_modeling * model.nats_of(hidden, targets, importance)
        return Terms(total, {self.unit: (total.detach(), len(batch))})


def is_summed(task: TaskKind) -> bool:
    """Return whether the head is applied to the sum over an example's sequences, not to each of them."""
    return task not in (TaskKind.choice, TaskKind.reward)


def next_tokens(batch: TaskBatch) -> tuple[Int[Tensor, "N T"], Float[Tensor, "N T"]]:
    """Return the target and the weight of each position; the weights of an example's sequences and tokens sum to 1."""
    token_ids, last = batch.token_ids.flatten(0, 1), batch.last.flatten()
    targets = token_ids.roll(-1, dims=1)
    real = torch.arange(token_ids.shape[1], device=token_ids.device) < last[:, None]
    share = 1 / (batch.token_ids.shape[1] * last.clamp_min(1))
    return targets.masked_fill(~real, IGNORED), share[:, None] * real
