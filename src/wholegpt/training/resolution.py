"""Resolution of settings: every choice that depends on the text or on the machine."""

import dataclasses

import torch

from wholegpt import runtime
from wholegpt.data import PreparedData, make_loader, windows_before
from wholegpt.errors import ConfigError, DataError
from wholegpt.settings.choices import Architecture, TokenizerKind
from wholegpt.settings.schema import Config
from wholegpt.settings.validation import check, complete_model, complete_optimizer, complete_schedule
from wholegpt.training.memory import fitting_micro_batch


def resolve(config: Config, data: PreparedData) -> Config:
    """Return ``config`` with every setting resolved that depends on the corpus or on this machine.

    Raises ``ConfigError`` or ``DataError`` if the two do not fit together: another vocabulary, fewer tokens than a
    window, no held-out text, a sample prompt that cannot be encoded.
    """
    check(config)
    vocab_size = config.model.vocab_size or data.tokenizer.vocab_size
    if vocab_size != data.tokenizer.vocab_size:
        raise ConfigError(
            f"model.vocab_size is {vocab_size} and the tokenizer has {data.tokenizer.vocab_size} tokens; "
            "set it to 0 to take the tokenizer's"
        )
    model = complete_model(dataclasses.replace(config.model, vocab_size=vocab_size))
    loader = make_loader(data, dataclasses.replace(config, model=model))
    if len(data.validation) < 2:
        raise DataError(
            f"{data.manifest.corpus}: the held-out part has {len(data.validation)} token(s), "
            "too few to measure on; give more text"
        )
    data.tokenizer.encode(config.logging.sample_prompt)
    training = config.training
    windows = training.epochs * loader.windows_per_text
    if training.batch_growth_steps:  # what its smaller batches leave for later
        growing = training.batch_growth_steps
        windows += growing * training.batch_size - windows_before(growing, training)
    steps = training.steps or max(1, round(windows / training.batch_size))
    if model.architecture is Architecture.ngram:
        steps = 1  # the whole text is counted once
    training = dataclasses.replace(config.training, steps=steps, epochs=0.0)
    tokenizer = config.tokenizer
    if tokenizer.kind is TokenizerKind.bpe and not tokenizer.path and not tokenizer.vocab_size:
        tokenizer = dataclasses.replace(tokenizer, vocab_size=vocab_size)
    described = dataclasses.replace(config.data, card=data.card["sha256"])
    return decide(
        dataclasses.replace(config, model=model, tokenizer=tokenizer, training=training, data=described)
    )


def decide(config: Config) -> Config:
    """Return ``config``, whose model and steps are known, with the settings that depend on these or on this machine.

    These are warm-up, device, precision and micro-batch.
    """
    training = config.training
    optimizer, schedule = complete_optimizer(config.optimizer), config.schedule
    if config.model.architecture is not Architecture.ngram:  # which is counted, at no rate
        schedule = complete_schedule(schedule, training.steps)
    config = runtime.decide(dataclasses.replace(config, optimizer=optimizer, schedule=schedule))
    device = torch.device(config.runtime.device)
    rows = training.micro_batch_size or fitting_micro_batch(config, runtime.free_memory(device))
    training = dataclasses.replace(training, micro_batch_size=min(rows, training.batch_size))
    return dataclasses.replace(config, training=training)
