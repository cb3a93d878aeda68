"""Beginning a run: everything is decided and written into its folder, ready for the first step."""

import contextlib
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import torch

from wholegpt import runtime
from wholegpt.checkpoint import (
    CHAT_TEMPLATE,
    WEIGHTS,
    CheckpointStore,
    ModelFolder,
    TrainingFiles,
    load_model,
    model_folder,
)
from wholegpt.console import Console
from wholegpt.data import Corpus, PreparedData, open_corpus, prepare
from wholegpt.data.reading.files import READING_OPTIONS
from wholegpt.errors import ConfigError, DataError, RunError
from wholegpt.files import (
    exists,
    recover_unlocked,
    sha256_file,
    utf8_name,
    write_folder_atomic,
    write_json_atomic,
    write_text_atomic,
)
from wholegpt.model import Encoder, Transformer
from wholegpt.model.lora import merge, remove_lora
from wholegpt.planning import Budget, make_plan, refuse_planned
from wholegpt.runs.folder import (
    PLAN,
    RUN_FILES,
    Parent,
    lineage_of,
    new_folder,
    read_lineage,
    recorded_config,
    run_data,
    source_of,
    with_absolute_paths,
)
from wholegpt.settings.choices import Architecture, Execution, TaskKind
from wholegpt.settings.schema import Config, DataConfig, ModelConfig, TokenizerConfig
from wholegpt.settings.serialization import to_mapping, to_yaml
from wholegpt.settings.validation import check
from wholegpt.stages.classification import begin_task
from wholegpt.stages.initialization import architecture_of, begin_model
from wholegpt.stages.instruction import begin_instructions, begin_pairs
from wholegpt.stages.pretraining import Forgetting
from wholegpt.tokenizers import MASK
from wholegpt.training.resolution import decide, resolve
from wholegpt.training.stage import Begun
from wholegpt.training.state import TrainingState


def start_run(
    config: Config,
    out: Path | None,
    overwrite: bool,
    console: Console,
    budget: Budget | None = None,
    locks: contextlib.ExitStack | None = None,
) -> Path:
    """Prepare the data, decide everything, and write the run's folder, ready for its first step.

    The folder is locked until ``locks`` are released, or until this returns.
    """
    config = _as_given(config)
    if config.finetuning.task is not TaskKind.pretraining or config.finetuning.model:
        raise ConfigError(
            f"finetuning.task is {config.finetuning.task} and finetuning.model '{config.finetuning.model}'; `wholegpt "
            "finetune` begins from a model"
        )
    if config.model.architecture is Architecture.encoder_decoder and not budget:
        return start_pairs(config, out, overwrite, console, locks)
    if budget:
        check(config)
        refuse_planned(budget.minutes, changed_settings(config))
    config = _decided(_with_mask(config), console)
    config, corpus = open_text(config, console)
    name = corpus.name if corpus else Path(config.data.source[0]).name

    def fill(target: Path) -> None:
        data = prepared_text(config, corpus, target / "data", console)
        data.warn_unless(config.data.card, console)
        if budget:
            plan = make_plan(config, data, budget, math.inf, console)
            write_json_atomic(target / PLAN, plan.to_json())
            console.note(plan.describe())
            resolved = plan.config
        else:
            resolved = resolve(config, data)
            _warn_of_warmup(config, resolved, console)
        data.tokenizer.save(target / "tokenizer.json")
        write_json_atomic(target / "lineage.json", lineage_of(resolved, source_of(data)))
        write_text_atomic(target / "config.yaml", to_yaml(with_absolute_paths(resolved)))

    # Whole or not at all: a source that turns out to be bad costs no run that was there before.
    return _write(fill, out, name, config, overwrite, locks)


def _write(
    fill: Callable[[Path], None],
    out: Path | None,
    name: str,
    config: Config,
    overwrite: bool,
    locks: contextlib.ExitStack | None,
) -> Path:
    """The folder of a new run, which is locked before it is filled."""
    with contextlib.ExitStack() as until_written:
        folder = (locks or until_written).enter_context(new_folder(out, name, config, overwrite))
        write_folder_atomic(folder, fill, RUN_FILES)
    return folder


def _as_given(config: Config) -> Config:
    """What repeats an encoder–decoder's run: its table is a source again."""
    table = config.finetuning.data
    if config.model.architecture is not Architecture.encoder_decoder or not table or config.finetuning.model:
        return config
    finetuning = dataclasses.replace(config.finetuning, task=TaskKind.pretraining, data="")
    source = config.data.source or (table,)
    return dataclasses.replace(
        config, finetuning=finetuning, data=dataclasses.replace(config.data, source=source)
    )


def start_finetuning(
    config: Config,
    out: Path | None,
    overwrite: bool,
    console: Console,
    locks: contextlib.ExitStack | None = None,
) -> Path:
    """Write the folder of a run that begins from another model, which is its checkpoint of step 0.

    Nothing but this folder is needed from then on. It is locked until ``locks`` are released, or until this returns.
    """
    config = _decided(config, console)
    settings = config.finetuning
    source = model_folder(Path(settings.model), "best", console)
    parent = load_model(source)
    headless = settings.task in (TaskKind.pretraining, TaskKind.instruct)
    if isinstance(parent.model, Encoder) and headless:
        raise ConfigError(
            f"{settings.model}: is an encoder, which does not write; it is fine-tuned for tasks with a head"
        )
    if isinstance(parent.model, Encoder) and settings.language_modeling:
        raise ConfigError(
            f"{settings.model}: is an encoder, which does not predict the next token; set "
            "--finetuning.language-modeling 0"
        )
    if not isinstance(parent.model, Transformer):
        raise ConfigError(
            f"{settings.model}: is of kind {parent.model.config.architecture}; fine-tuning begins from a transformer"
        )
    if parent.metadata.task:
        raise ConfigError(
            f"{settings.model}: is fine-tuned for {parent.metadata.task.kind} already; "
            "begin from the model it came from"
        )
    _check_architecture(config.model, parent.model.config, settings.model)
    if parent.metadata.lora:
        merge(parent.model)
        remove_lora(parent.model)
    origin = Parent(str(Path(settings.model).resolve()), source.name, sha256_file(source / WEIGHTS))
    name = f"{Path(settings.model).resolve().name}-{settings.task}"

    def fill(target: Path) -> None:
        if settings.task is TaskKind.pretraining:
            begun = _begin_text(config, parent, source, target, console)
        elif settings.task is TaskKind.instruct:
            begun = begin_instructions(config, parent, target, console)
        else:
            begun = begin_task(config, parent, target, console)
        resolved = _write_begun(target, begun, [origin], console)
        if settings.task is TaskKind.pretraining:
            _begin_forgetting(resolved, begun, target, console)

    return _write(fill, out, name, config, overwrite, locks)


def start_pairs(
    config: Config,
    out: Path | None,
    overwrite: bool,
    console: Console,
    locks: contextlib.ExitStack | None = None,
) -> Path:
    """Write the folder of an encoder–decoder's run, which learns to write the target of each of its sources."""
    if len(config.data.source) != 1:
        raise ConfigError(
            f"data.source is {list(config.data.source)}; an encoder_decoder learns from one table, of sources and "
            "targets"
        )
    (source,) = config.data.source
    settings = dataclasses.replace(config.finetuning, task=TaskKind.instruct, data=source)
    reading = dataclasses.replace(config.data, source=())
    config = _decided(dataclasses.replace(config, finetuning=settings, data=reading), console)

    def fill(target: Path) -> None:
        _write_begun(target, begin_pairs(config, target, console), [], console)

    return _write(fill, out, utf8_name(Path(source)), config, overwrite, locks)


def _write_begun(folder: Path, begun: Begun, parents: list[Parent], console: Console) -> Config:
    """Everything of a run but its data, with the checkpoint of step 0; its config, decided."""
    resolved = decide(begun.config)
    _warn_of_warmup(begun.config, resolved, console)
    begun.tokenizer.save(folder / "tokenizer.json")
    if begun.metadata.chat_template:
        write_text_atomic(folder / CHAT_TEMPLATE, begun.metadata.chat_template)
    write_json_atomic(folder / "lineage.json", lineage_of(resolved, begun.source, parents))
    write_text_atomic(folder / "config.yaml", to_yaml(with_absolute_paths(resolved)))
    training = TrainingFiles({}, TrainingState().to_json())
    CheckpointStore(folder).save(begun.model, begun.tokenizer, training, 0, None, begun.metadata)
    return resolved


def _warn_of_warmup(asked: Config, resolved: Config, console: Console) -> None:
    given, steps = asked.schedule.warmup_steps, resolved.training.steps
    if given > resolved.schedule.warmup_steps:
        console.warn(
            f"schedule.warmup_steps is {given:,} and the run has {steps:,} steps, so the rate would not fall; "
            f"the warm-up is {resolved.schedule.warmup_steps:,} steps"
        )


def _begin_text(config: Config, parent: ModelFolder, source: Path, folder: Path, console: Console) -> Begun:
    """Tokenize the text with the parent's vocabulary, to go on with its weights."""
    tokenizer = TokenizerConfig(path=str(source.resolve()))
    architecture = architecture_of(config, parent, parent.tokenizer.vocab_size)
    config = dataclasses.replace(config, tokenizer=tokenizer, model=architecture)
    config, corpus = open_text(config, console)
    data = prepared_text(config, corpus, folder / "data", console)
    if data.tokenizer.sha256 != parent.tokenizer.sha256:
        raise ConfigError(
            f"{data.folder}: was prepared with another tokenizer than the model's; name the text itself"
        )
    lora = config.lora if config.lora.rank else None
    ends = parent.metadata.end_token_ids
    metadata = dataclasses.replace(
        parent.metadata,
        control=data.manifest.control,
        start_text=data.start_text,
        lora=lora,
        new_tokens=0,
        # Documents end with end-of-text, whatever ended texts before.
        end_token_ids=(*ends, *({data.tokenizer.end_of_text_id} - {*ends})) if ends else (),
    )
    config = resolve(config, data)
    return Begun(config, begin_model(config, parent, metadata), parent.tokenizer, metadata, source_of(data))


def _begin_forgetting(config: Config, begun: Begun, folder: Path, console: Console) -> None:
    """Keep the text that may be forgotten, and how well the model knows it; a chat model's is the one before that."""
    text_run, device = Path(config.finetuning.model), torch.device(config.runtime.device)
    try:
        while recorded_config(text_run).finetuning.task is not TaskKind.pretraining:
            text_run = Path(read_lineage(text_run)["parents"][0]["model"])
        text = run_data(text_run).validation
    except (DataError, RunError) as error:
        console.note(f"what is forgotten of the text before is not measured: {error}")
        return
    with console.working("measuring the model on the text that it comes from"):
        Forgetting.begin(folder, text, begun.model.to(device).eval(), config, begun.tokenizer)


def _with_mask(config: Config) -> Config:
    """``config``, whose tokenizer has the token that hides others, where an encoder is trained."""
    names = config.tokenizer.special_tokens
    if config.model.architecture is not Architecture.encoder or MASK in names:
        return config
    return dataclasses.replace(
        config, tokenizer=dataclasses.replace(config.tokenizer, special_tokens=(*names, MASK))
    )


def _check_architecture(asked: ModelConfig, parent: ModelConfig, where: str) -> None:
    """Raise ``ConfigError`` where another architecture is asked for than the model has."""
    default = to_mapping(ModelConfig())
    theirs = to_mapping(parent)
    for name, value in to_mapping(asked).items():
        if name not in ("dropout", "vocab_size") and value not in (default[name], theirs[name]):
            raise ConfigError(
                f"model.{name} is {value}, and {theirs[name]} in {where}, whose architecture stays; leave it out"
            )


def _decided(config: Config, console: Console) -> Config:
    """``config``, checked, and known to be possible on this machine before anything is read."""
    check(config)
    config = _eager_without_compiler(config, console)
    runtime.decide(config)
    return config


def open_text(config: Config, console: Console) -> tuple[Config, Corpus | None]:
    """The corpus that ``config`` names; none where it names prepared data, whose folder and tokenizer it then has."""
    folder = Path(config.data.source[0]) if len(config.data.source) == 1 and config.data.source[0] else None
    if folder and not exists(folder):
        recover_unlocked(folder)
    if folder is None or not PreparedData.exists(folder):
        return config, open_corpus(config.data)
    for name in (*READING_OPTIONS, "clean", "deduplicate"):
        if getattr(config.data, name) != getattr(DataConfig(), name):
            raise ConfigError(
                f"data.{name} changes nothing here: {folder} is prepared data, which is read already; leave it out"
            )
    # Absolute, so that the run can be resumed from any folder.
    console.note(f"{folder} is prepared data: its own tokenizer and split are used")
    data = dataclasses.replace(config.data, source=(str(folder.resolve()),))
    hides = PreparedData.open(folder).tokenizer.id_of(MASK) is not None
    if config.model.architecture is Architecture.encoder and not hides:
        raise ConfigError(
            f"{folder}: was prepared without the token {MASK}, by which an encoder learns; name the text itself, or "
            f"prepare it with --tokenizer.special-tokens '{MASK}'"
        )
    return dataclasses.replace(config, data=data, tokenizer=TokenizerConfig(path=str(folder.resolve()))), None


def prepared_text(config: Config, corpus: Corpus | None, folder: Path, console: Console) -> PreparedData:
    """The tokens of ``corpus``, written to ``folder``; or the prepared data that ``config`` names."""
    if corpus is None:
        folder = Path(config.data.source[0])
        data, asked = PreparedData.open(folder), list(config.data.control)
        if asked and asked != list(data.manifest.control):
            raise ConfigError(
                f"data.control is {asked}, and {folder} was prepared with {list(data.manifest.control)}; prepare the "
                "text anew, or leave it out"
            )
        return data
    return prepare(corpus, config.data, config.tokenizer, folder, console)


def _eager_without_compiler(config: Config, console: Console) -> Config:
    """``config``, compiled only where PyTorch's compiler works; a warning says why not."""
    if config.precision.execution is Execution.eager:
        return config
    problem = runtime.compiler_problem(runtime.choose_device(config.runtime.device))
    if not problem:
        return config
    console.warn(f"compiling fails here ({problem}); training runs operation by operation instead")
    eager = dataclasses.replace(config.precision, execution=Execution.eager)
    return dataclasses.replace(config, precision=eager)


def changed_settings(config: Config) -> list[str]:
    """Settings that are not their defaults, as SECTION.FIELD."""
    given, default = to_mapping(config), to_mapping(Config())
    return [
        f"{section}.{name}"
        for section, fields in default.items()
        for name, value in fields.items()
        if given[section][name] != value
    ]
