"""Task heads: linear layers on a transformer beside its output projection.

Shapes: B examples, C sequences of each example, T positions, D model width, O outputs.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from wholegpt.model.base import INITIAL_STANDARD_DEVIATION, NeuralModel, TokenModel
from wholegpt.model.encoder import Encoder
from wholegpt.model.transformer import Transformer
from wholegpt.settings.choices import ActivationCheckpointing, AttentionKernel
from wholegpt.settings.schema import ModelConfig


class TaskModel(NeuralModel):
    """A model with a linear head on the last token of each sequence (Radford et al. 2018, section 3.2)."""

    head: nn.Linear

    def head_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the head."""
        return list(self.head.parameters())

    def task_outputs(
        self,
        token_ids: Int[Tensor, "B C T"],
        last: Int[Tensor, "B C"],
        second: Int[Tensor, "B C"],
        summed: bool,
    ) -> tuple[Float[Tensor, "N T D"], Float[Tensor, "B O"]]:
        """Return the hidden states of all N = B·C sequences, and the outputs of the head.

        ``last`` is the index of the last real token of each sequence, and ``second`` that of the first token of its
        second text. See ``apply_head`` for ``summed``.
        """
        hidden = self.sequence_states(token_ids.flatten(0, 1), last.flatten(), second.flatten())
        return hidden, apply_head(self.head, hidden.view(*token_ids.shape, -1), last, summed)

    def sequence_states(
        self, token_ids: Int[Tensor, "N T"], last: Int[Tensor, " N"], second: Int[Tensor, " N"]
    ) -> Float[Tensor, "N T D"]:
        """Return the hidden states of sequences, of which the tokens after ``last`` are padding."""
        return self.hidden_states(token_ids)


class TaskTransformer(TaskModel, Transformer):
    """A transformer with a head."""

    def __init__(
        self,
        config: ModelConfig,
        outputs: int,
        kernel: AttentionKernel = AttentionKernel.plain,
        activation_checkpointing: ActivationCheckpointing = ActivationCheckpointing.none,
    ) -> None:
        super().__init__(config, kernel, activation_checkpointing)
        self.head = make_head(config, outputs)


class TaskEncoder(TaskModel, Encoder):
    """An encoder with a head."""

    def __init__(
        self,
        config: ModelConfig,
        outputs: int,
        kernel: AttentionKernel = AttentionKernel.plain,
        activation_checkpointing: ActivationCheckpointing = ActivationCheckpointing.none,
    ) -> None:
        super().__init__(config, kernel, activation_checkpointing)
        self.head = make_head(config, outputs)

    def sequence_states(
        self, token_ids: Int[Tensor, "N T"], last: Int[Tensor, " N"], second: Int[Tensor, " N"]
    ) -> Float[Tensor, "N T D"]:
        """Return the hidden states of sequences, whose tokens do not attend to padding."""
        positions = torch.arange(token_ids.shape[1], device=token_ids.device)
        documents = (positions > last[:, None]).long()
        segments = (positions >= second[:, None]).long()
        return self.hidden_states(token_ids, documents=documents, segments=segments)


def make_head(config: ModelConfig, outputs: int) -> nn.Linear:
    """Return the layer W·h + b, initialized like the embeddings."""
    head = nn.Linear(config.d_model, outputs)
    nn.init.normal_(head.weight, std=INITIAL_STANDARD_DEVIATION)
    nn.init.zeros_(head.bias)
    return head


def apply_head(
    head: nn.Linear, hidden: Float[Tensor, "B C T D"], last: Int[Tensor, "B C"], summed: bool
) -> Float[Tensor, "B O"]:
    """Compute W·h + b of the hidden states at the ``last`` real token of each sequence; padding may follow
    it.

    With ``summed``, h is the sum over the sequences of an example (both orders of a text pair). Otherwise
    each sequence has a single output and O equals C (the choices of a multiple-choice question, or the answers that a
    reward model scores).
    """
    index = last[:, :, None, None].expand(-1, -1, -1, hidden.shape[-1])
    at_last = hidden.gather(2, index)[:, :, 0].to(head.weight.dtype)
    return head_outputs(head, at_last.sum(1)) if summed else head_outputs(head, at_last)[:, :, 0]


def head_outputs(head: nn.Linear, hidden: Float[Tensor, "*N D"]) -> Float[Tensor, "*N O"]:
    """Compute W·h + b in the dtype of the head, also where other products are in bfloat16.

    The few digits of bfloat16 would make near outputs equal.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        return head(hidden.to(head.weight.dtype))


def extend_vocabulary(model: TokenModel, vocab_size: int) -> dict[str, Tensor]:
    """Return the tensors of ``model`` with rows for additional tokens, initialized like embeddings."""
    assert isinstance(model, NeuralModel)
    tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    for name in ("token_embedding.weight", "unembedding.weight"):
        rows = tensors[name]
        fresh = torch.empty(vocab_size - len(rows), rows.shape[1]).normal_(std=INITIAL_STANDARD_DEVIATION)
        tensors[name] = torch.cat([rows, fresh.to(rows)])
    if model.unembedding.weight is model.token_embedding.weight:
        tensors["unembedding.weight"] = tensors["token_embedding.weight"]
    if isinstance(model, Encoder):
        new = vocab_size - model.vocab_size
        tensors["prediction_bias"] = nn.functional.pad(tensors["prediction_bias"], (0, new))
    return tensors
