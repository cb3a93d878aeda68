"""A run that begins from another model: its weights taken over, with rows for new tokens, a head, LoRA."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from wholegpt.checkpoint import ModelFolder, ModelMetadata, make_model
from wholegpt.errors import ConfigError
from wholegpt.model import TokenModel
from wholegpt.model.heads import extend_vocabulary
from wholegpt.settings.choices import Initialization
from wholegpt.settings.schema import Config, ModelConfig
from wholegpt.tokenizers import Tokenizer
from wholegpt.training.stage import Begun


def begin(
    config: Config,
    parent: ModelFolder,
    tokenizer: Tokenizer,
    metadata: ModelMetadata,
    per_pass: int,
    examples_hash: str,
) -> Begun:
    """A run over examples of which a pass reads ``per_pass``, kept already under ``examples_hash``."""
    config = with_steps(config, per_pass)
    architecture, steps = architecture_of(config, parent, tokenizer.vocab_size), config.training.steps
    frozen = config.finetuning.unfreeze_every * (architecture.n_layers + 1)
    if frozen >= steps:
        raise ConfigError(
            f"finetuning.unfreeze_every frees the embeddings after {frozen:,} steps, and there are {steps:,}; the new "
            "tokens would never be learned: free sooner, or train longer"
        )
    config = replace(config, model=architecture)
    source = source_of_examples(config, examples_hash)
    return Begun(config, begin_model(config, parent, metadata), tokenizer, metadata, source)


def with_steps(config: Config, per_pass: int) -> Config:
    """``config`` with steps in place of passes, each over so many examples or rows.

    Where these are fewer than a batch, it holds each once, so that passes stay passes and few examples make more steps.
    """
    training = config.training
    if training.steps:
        return config
    batch = training.batch_size if training.initial_batch_size else min(training.batch_size, per_pass)
    steps = max(1, round(training.epochs * per_pass / batch))
    return replace(config, training=replace(training, steps=steps, epochs=0.0, batch_size=batch))


def source_of_examples(config: Config, examples_hash: str) -> dict[str, Any]:
    """What ``lineage.json`` says of a table of examples."""
    corpus = Path(config.finetuning.data).name
    return {"corpus": corpus, "provenance": None, "data": examples_hash, "data_card": ""}


def architecture_of(config: Config, parent: ModelFolder, vocab_size: int) -> ModelConfig:
    """The parent's, with the vocabulary and the dropout of the new run."""
    return replace(parent.model.config, vocab_size=vocab_size, dropout=config.model.dropout)


@torch.no_grad()
def begin_model(config: Config, parent: ModelFolder, metadata: ModelMetadata) -> TokenModel:
    """A model of the architecture in ``config``, with the parent's weights unless random ones are asked for.

    Rows of new tokens, the head and LoRA begin as they do anywhere.
    """
    torch.manual_seed(config.runtime.seed)
    model = make_model(config.model, metadata)
    if config.finetuning.initialization is Initialization.trained:
        own = {name.replace(".base.", "."): tensor for name, tensor in model.state_dict().items()}
        for name, tensor in extend_vocabulary(parent.model, model.vocab_size).items():
            own[name].copy_(tensor)
    return model
