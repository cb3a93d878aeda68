"""Sequence-to-sequence training of an encoder-decoder, from pairs of a source and a target."""

from dataclasses import replace
from pathlib import Path

import torch

from wholegpt.checkpoint import ModelMetadata, make_model
from wholegpt.data.chat.template import PAIR_TEMPLATE, SEPARATOR, ChatTemplate
from wholegpt.data.examples.conversations import ConversationData
from wholegpt.data.text.vocabulary import make_tokenizer
from wholegpt.errors import ConfigError, DataError
from wholegpt.files import utf8_name
from wholegpt.settings.choices import Architecture, TaskKind, TokenizerKind
from wholegpt.settings.schema import Config
from wholegpt.settings.validation import complete_model
from wholegpt.stages.answer_training import AnswerTraining, packed_rows
from wholegpt.stages.definition import NewRun, NextStep, RunContents, RunSetup, SetupRequest, StageDefinition
from wholegpt.stages.initialization import source_of_examples, with_steps


class SequenceToSequence(AnswerTraining):
    """Prediction of the next token of targets, given their sources."""

    unit = "pairs"


def set_up(request: SetupRequest) -> NewRun:
    """Set up training from random weights, on the one table that the settings name."""
    sources = request.config.data.source
    if len(sources) != 1:
        raise ConfigError(
            f"data.source is {list(sources)}; an encoder_decoder is trained on one table, of sources and targets"
        )
    return NewRun(utf8_name(Path(sources[0])), lambda folder: _write(request, folder))


def _write(request: SetupRequest, folder: Path) -> RunSetup:
    """Read the pairs into ``folder``, and make a tokenizer and a model for them.

    Raises ``DataError`` for conversations of more than one turn.
    """
    config = request.config
    (source,) = config.data.source
    data = ConversationData.read(config, request.console, source)
    everything = [*data.train, *data.validation]
    if any([one.role for one in pair] != ["user", "assistant"] for pair in everything):
        raise DataError(f"{source}: has conversations; expected a source and a target each")
    data_hash = data.save(folder / "data")
    template, names = ChatTemplate(PAIR_TEMPLATE), config.tokenizer.special_tokens
    learned = everything if config.tokenizer.kind is TokenizerKind.character else data.train
    texts = [message.content for pair in learned for message in pair]
    settings = replace(config.tokenizer, special_tokens=(*names, *({SEPARATOR} - {*names})))
    tokenizer = make_tokenizer(settings, lambda: iter(texts), sum(map(len, texts)))
    separator = tokenizer.id_of(SEPARATOR)
    assert separator is not None
    model = complete_model(replace(config.model, vocab_size=tokenizer.vocab_size, separator=separator))
    rows = packed_rows(data, template, tokenizer, config)
    metadata = ModelMetadata(columns=data.columns, chat_template=template.source)
    config = replace(with_steps(config, rows), model=model, tokenizer=settings)
    torch.manual_seed(config.runtime.seed)
    return RunSetup(config, tokenizer, source_of_examples(source, data_hash), make_model(model), metadata)


def open_stage(run: RunContents) -> SequenceToSequence:
    """Open training over the pairs of a run."""
    data = ConversationData.open(run.examples())
    return SequenceToSequence(run.config, data, run.tokenizer(), run.metadata())


def next_steps(_: Config) -> list[NextStep]:
    """Return the uses of a model that turns sources into targets."""
    return [
        NextStep('{program} generate {run} "A SOURCE"', "generate its target"),
        NextStep("{program} evaluate {run} TEST.csv", "evaluate it on other pairs"),
    ]


STAGE = StageDefinition(
    name="sequence_to_sequence",
    tasks=(TaskKind.pretraining,),
    architectures=(Architecture.encoder_decoder,),
    parents=(),
    set_up=set_up,
    open=open_stage,
    next_steps=next_steps,
)
