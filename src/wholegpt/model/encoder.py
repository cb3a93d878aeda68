"""A bidirectional transformer that predicts masked tokens (Devlin et al. 2018, "BERT").

Shapes: B batch, T positions, D model width, N selected positions, V vocabulary.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from wholegpt.errors import ConfigError
from wholegpt.model.layers.attention import SequenceContext
from wholegpt.model.layers.feed_forward import ACTIVATIONS
from wholegpt.model.layers.linear import Linear
from wholegpt.model.layers.norms import make_norm
from wholegpt.model.layers.positions import restarted_positions
from wholegpt.model.transformer import Transformer, initialize
from wholegpt.settings.choices import ActivationCheckpointing, AttentionKernel, NormPlacement
from wholegpt.settings.schema import ModelConfig


class Encoder(Transformer):
    """h₀ = W_e[x] + W_p[t] + W_s[segment], blocks without a causal mask, logits LN(act(W·h + c))·W_eᵀ + b.

    act is the activation of the feed-forward layers. The logits at a position predict the token at that
    position. With post-norm blocks, as in BERT, h₀ is normalized first.
    """

    predicts_next_token = False

    def __init__(
        self,
        config: ModelConfig,
        kernel: AttentionKernel = AttentionKernel.plain,
        activation_checkpointing: ActivationCheckpointing = ActivationCheckpointing.none,
    ) -> None:
        super().__init__(config, kernel, activation_checkpointing)
        config = self.config
        post = config.norm_placement is NormPlacement.post
        self.segment_embedding = nn.Embedding(config.segments, config.d_model) if config.segments else None
        self.embedding_norm = make_norm(config, config.d_model) if post else nn.Identity()
        self.prediction = Linear(config.d_model, config.d_model)
        self.prediction_norm = make_norm(config, config.d_model)
        self.prediction_bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.activation = ACTIVATIONS[config.feed_forward]
        initialize(self)

    def hidden_states(
        self,
        token_ids: Int[Tensor, "B T"],
        cache: Any = None,
        documents: Int[Tensor, "B T"] | None = None,
        segments: Int[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Return the residual stream after the last block.

        ``documents`` and padding do not see each other. ``segments`` (default 0) are the index of the text of
        a pair that each token belongs to.
        """
        assert cache is None
        length = token_ids.shape[1]
        if length > self.context_length and self.ends_at_context:
            raise ConfigError(f"{length} tokens do not fit model.context_length = {self.context_length}")
        positions, visible = torch.arange(length, device=self.device), None
        if documents is not None:
            positions = restarted_positions(documents)
            visible = (documents[:, :, None] == documents[:, None]).unsqueeze(1)
        stream = self.embedded(token_ids, positions)
        if self.segment_embedding is not None:
            stream = stream + self.segment_embedding(
                torch.zeros_like(token_ids) if segments is None else segments
            )
        context = SequenceContext(visible, self.rotation(positions, stream), None)
        return self.through_blocks(self.embedding_norm(stream), context)

    def logits_of(self, hidden: Float[Tensor, "*N D"]) -> Float[Tensor, "*N V"]:
        """Return the logits of the tokens at these positions."""
        return self.unembedding(self.predicted(hidden)) + self.prediction_bias

    def predicted(self, hidden: Float[Tensor, "*N D"]) -> Float[Tensor, "*N D"]:
        """Compute LN(act(W·h + c))."""
        return self.prediction_norm(self.activation(self.prediction(hidden)))

    def masked_token_logits(
        self,
        token_ids: Int[Tensor, "B T"],
        masked: Bool[Tensor, "B T"],
        documents: Int[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "N V"]:
        """Return the logits of the N masked tokens, row by row."""
        return self.logits_of(self.hidden_states(token_ids, documents=documents)[masked])

    def new_cache(self, batch_size: int, capacity: int = 0) -> Any:
        """Raise ``ConfigError``: an encoder cannot use a cache, since its states depend on later tokens."""
        raise ConfigError(
            "an encoder is bidirectional and cannot generate text; train a transformer for that"
        )
