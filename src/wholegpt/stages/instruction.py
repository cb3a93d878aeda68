"""Instruction tuning: a trained model learns to answer, from conversations of which only the answers have a loss."""

from dataclasses import replace
from pathlib import Path

from wholegpt.checkpoint import ModelMetadata
from wholegpt.data.chat.template import DEFAULT_TEMPLATE, ChatTemplate
from wholegpt.data.examples.conversations import ConversationData
from wholegpt.data.reading.files import read_text
from wholegpt.errors import ConfigError
from wholegpt.settings.choices import Architecture, TaskKind
from wholegpt.settings.schema import Config
from wholegpt.stages.answer_training import AnswerTraining, packed_rows
from wholegpt.stages.definition import NewRun, NextStep, RunContents, RunSetup, SetupRequest, StageDefinition
from wholegpt.stages.initialization import fine_tuned
from wholegpt.stages.reference import companions_of, reference_of
from wholegpt.tokenizers import END_OF_TEXT


class InstructionTuning(AnswerTraining):
    """Prediction of the next token of the assistant's messages."""


def set_up(request: SetupRequest) -> NewRun:
    """Set up instruction tuning of the parent."""
    return NewRun("", lambda folder: _write(request, folder))


def _write(request: SetupRequest, folder: Path) -> RunSetup:
    """Read the conversations into ``folder``, and add the chat template's special tokens to the parent."""
    config, parent = request.config, request.parent_model
    data = ConversationData.read(config, request.console)
    data_hash = data.save(folder / "data")
    path = config.finetuning.chat_template
    if not parent.tokenizer.has_end_of_text:
        raise ConfigError("the model's tokenizer has no end-of-text token; instruction tuning needs one")
    end = parent.tokenizer.name_of(parent.tokenizer.end_of_text_id)
    source = read_text(Path(path), "utf-8") if path else DEFAULT_TEMPLATE.replace(END_OF_TEXT, end)
    template = ChatTemplate(source)
    new = [name for name in template.special_tokens if parent.tokenizer.id_of(name) is None]
    tokenizer = parent.tokenizer.with_special_tokens(new) if new else parent.tokenizer
    metadata = ModelMetadata(
        lora=config.lora if config.lora.rank else None,
        new_tokens=len(new),
        columns=data.columns,
        start_text=parent.metadata.start_text,
        chat_template=template.source,
    )
    rows = packed_rows(data, template, tokenizer, replace(config, model=parent.model.config))
    setup = fine_tuned(config, parent, tokenizer, metadata, rows, data_hash)
    assert setup.model
    return replace(setup, companions=companions_of(config, setup.model, tokenizer, metadata))


def open_stage(run: RunContents) -> InstructionTuning:
    """Open instruction tuning over the conversations of a run."""
    data = ConversationData.open(run.examples())
    return InstructionTuning(run.config, data, run.tokenizer(), run.metadata(), reference_of(run))


def next_steps(_: Config) -> list[NextStep]:
    """Return the uses of a model that answers."""
    return [
        NextStep("{program} chat {run}", "talk to it"),
        NextStep("{program} evaluate {run} TEST.json", "evaluate it on other conversations"),
    ]


STAGE = StageDefinition(
    name="instruction",
    tasks=(TaskKind.instruct,),
    architectures=(),
    parents=(Architecture.transformer,),
    set_up=set_up,
    open=open_stage,
    next_steps=next_steps,
    recipe="instruct",
)
