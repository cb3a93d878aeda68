"""A run that starts from a trained model: its weights, with rows for new tokens, a head, and LoRA."""

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
from wholegpt.stages.definition import RunSetup
from wholegpt.tokenizers import Tokenizer


def fine_tuned(
    config: Config,
    parent: ModelFolder,
    tokenizer: Tokenizer,
    metadata: ModelMetadata,
    rows: int,
    data_hash: str,
) -> RunSetup:
    """Return the setup of a run over examples, of which an epoch has ``rows``."""
    config = with_steps(config, rows)
    architecture, steps = architecture_of(config, parent, tokenizer.vocab_size), config.training.steps
    frozen = config.finetuning.unfreeze_every * (architecture.n_layers + 1)
    if frozen >= steps:
        raise ConfigError(
            f"finetuning.unfreeze_every frees the embeddings after {frozen:,} steps, and there are {steps:,}; the new "
            "tokens would never be learned: free sooner, or train longer"
        )
    config = replace(config, model=architecture)
    source = source_of_examples(config.finetuning.data, data_hash)
    return RunSetup(config, tokenizer, source, initialized_model(config, parent, metadata), metadata)


def with_steps(config: Config, rows: int) -> Config:
    """Return ``config`` with steps in place of epochs of ``rows`` examples each.

    If there are fewer rows than a batch, a batch holds each row once, so that few examples make more steps.
    """
    training = config.training
    if training.steps:
        return config
    batch = training.batch_size if training.initial_batch_size else min(training.batch_size, rows)
    steps = max(1, round(training.epochs * rows / batch))
    return replace(config, training=replace(training, steps=steps, epochs=0.0, batch_size=batch))


def source_of_examples(path: str, data_hash: str) -> dict[str, Any]:
    """Return the entries of ``lineage.json`` about a table of examples."""
    return {"corpus": Path(path).name, "provenance": None, "data": data_hash, "data_card": ""}


def architecture_of(config: Config, parent: ModelFolder, vocab_size: int) -> ModelConfig:
    """Return the parent's architecture, with the vocabulary and the dropout of the new run."""
    return replace(parent.model.config, vocab_size=vocab_size, dropout=config.model.dropout)


@torch.no_grad()
def initialized_model(config: Config, parent: ModelFolder, metadata: ModelMetadata) -> TokenModel:
    """Return a model of the architecture in ``config``, with the parent's weights or, if asked for, random ones.

    Rows of new tokens, the head and LoRA are initialized as in any new model.
    """
    torch.manual_seed(config.runtime.seed)
    model = make_model(config.model, metadata)
    if config.finetuning.initialization is Initialization.trained:
        own = {name.replace(".base.", "."): tensor for name, tensor in model.state_dict().items()}
        for name, tensor in extend_vocabulary(parent.model, model.vocab_size).items():
            own[name].copy_(tensor)
    return model
