"""What stands on a transformer besides its output vocabulary.

Shapes: B examples, C sequences of each, T positions, D model width, O outputs.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from wholegpt.model.base import INITIAL_STANDARD_DEVIATION, NeuralModel, TokenModel
from wholegpt.model.encoder import Encoder
from wholegpt.model.transformer import Transformer
from wholegpt.settings.choices import ActivationCheckpointing, AttentionKernel
from wholegpt.settings.schema import ModelConfig


class TaskTransformer(Transformer):
    """A transformer with a linear head on the last token of each sequence (Radford et al. 2018, section 3.2)."""

    def __init__(
        self,
        config: ModelConfig,
        outputs: int,
        kernel: AttentionKernel = AttentionKernel.plain,
        activation_checkpointing: ActivationCheckpointing = ActivationCheckpointing.none,
    ) -> None:
        super().__init__(config, kernel, activation_checkpointing)
        self.head = make_head(config, outputs)


class TaskEncoder(Encoder):
    """The same of an encoder."""

    def __init__(
        self,
        config: ModelConfig,
        outputs: int,
        kernel: AttentionKernel = AttentionKernel.plain,
        activation_checkpointing: ActivationCheckpointing = ActivationCheckpointing.none,
    ) -> None:
        super().__init__(config, kernel, activation_checkpointing)
        self.head = make_head(config, outputs)


TaskModel = TaskTransformer | TaskEncoder


def make_head(config: ModelConfig, outputs: int) -> nn.Linear:
    """W·h + b, begun as the embeddings are."""
    head = nn.Linear(config.d_model, outputs)
    nn.init.normal_(head.weight, std=INITIAL_STANDARD_DEVIATION)
    nn.init.zeros_(head.bias)
    return head


def read_out(
    head: nn.Linear, hidden: Float[Tensor, "B C T D"], last: Int[Tensor, "B C"], summed: bool
) -> Float[Tensor, "B O"]:
    """W·h + b of the hidden states at the ``last`` real token of each sequence, whatever stands after it.

    ``summed``: h is the sum over an example's sequences (both orders of two texts); else each sequence has the one
    output of its own, and O is C (the answers to a question).
    """
    places = last[:, :, None, None].expand(-1, -1, -1, hidden.shape[-1])
    at_last = hidden.gather(2, places)[:, :, 0]
    return head(at_last.sum(1)) if summed else head(at_last)[:, :, 0]


def extend_vocabulary(model: TokenModel, vocab_size: int) -> dict[str, Tensor]:
    """The tensors of ``model`` with rows for further tokens, drawn as embeddings begin."""
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
