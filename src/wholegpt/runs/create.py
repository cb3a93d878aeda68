"""Creating a run: its sources are checked, every setting is resolved, and its folder is written."""

import contextlib
import dataclasses
import math
from pathlib import Path

from wholegpt import runtime
from wholegpt.checkpoint import (
    CHAT_TEMPLATE,
    WEIGHTS,
    CheckpointStore,
    TrainingFiles,
    load_model,
    model_folder,
    save_model,
)
from wholegpt.console import Console
from wholegpt.data import PreparedData, Texts, TokenShards
from wholegpt.errors import ConfigError
from wholegpt.files import sha256_file, write_folder_atomic, write_json_atomic, write_text_atomic
from wholegpt.model.lora import merge, remove_lora
from wholegpt.planning import Budget, Plan, make_plan
from wholegpt.runs.folder import (
    COMPANIONS,
    PLAN,
    RUN_FILES,
    Parent,
    lineage_of,
    new_folder,
    read_lineage,
    recorded_config,
    run_data,
    with_absolute_paths,
)
from wholegpt.settings.choices import Execution, TaskKind
from wholegpt.settings.schema import Config, ModelConfig
from wholegpt.settings.serialization import to_mapping, to_yaml
from wholegpt.settings.validation import check, check_windows, refuse_planned
from wholegpt.stages.definition import ParentModel, RunSetup, SetupRequest
from wholegpt.stages.registry import stage_of
from wholegpt.training.resolution import decide, resolve
from wholegpt.training.state import TrainingState


def create_run(
    config: Config,
    out: Path | None,
    overwrite: bool,
    console: Console,
    budget: Budget | None = None,
    locks: contextlib.ExitStack | None = None,
    texts: Texts | None = None,
) -> Path:
    """Write the folder of a new run, ready for its first step, and return it.

    The stage that ``config`` selects reads and checks the data, or ``texts`` instead of a source. From then on the run
    needs nothing outside its folder but data that were prepared elsewhere. With a ``budget``, the model and its
    training are planned. The folder is locked until ``locks`` are released, or until this returns. It is written
    completely or not at all, so that a bad source does not cost a run that was there before.
    """
    if budget:
        check(config)
        refuse_planned(budget.minutes, changed_settings(config))
    config = _checked(config, console)
    parent = _open_parent(config, console) if config.finetuning.model else None
    stage = stage_of(config, parent and parent.loaded.model.config.architecture)
    if parent:
        _check_parent(config, parent)
    plans: list[Plan] = []

    def resolved(config: Config, data: PreparedData) -> Config:
        if not budget:
            return resolve(config, data)
        plans.append(make_plan(config, data, budget, math.inf, console))
        console.note(plans[-1].describe())
        return plans[-1].config

    run = stage.set_up(SetupRequest(config, parent, resolved, console, texts))
    name = run.name or f"{Path(config.finetuning.model).resolve().name}-{config.finetuning.task}"

    def fill(folder: Path) -> None:
        setup = run.write(folder)
        for plan in plans:
            write_json_atomic(folder / PLAN, plan.to_json())
        _write_setup(folder, config, setup, parent, console)

    with contextlib.ExitStack() as until_written:
        folder = (locks or until_written).enter_context(new_folder(out, name, config, overwrite))
        write_folder_atomic(folder, fill, RUN_FILES)
    return folder


def _write_setup(
    folder: Path, asked: Config, setup: RunSetup, parent: ParentModel | None, console: Console
) -> None:
    """Write everything of a new run except its data."""
    config = decide(setup.config)
    _warn_of_warmup(asked, config, console)
    setup.tokenizer.save(folder / "tokenizer.json")
    if setup.metadata.chat_template:
        write_text_atomic(folder / CHAT_TEMPLATE, setup.metadata.chat_template)
    hashes: dict[str, str] = {}
    for role, companion in setup.companions.items():
        path = folder / COMPANIONS / role
        save_model(path, companion.model, companion.tokenizer, companion.metadata)
        hashes[role] = sha256_file(path / WEIGHTS)
    parents = [_record_of(config, parent)] if parent else []
    write_json_atomic(folder / "lineage.json", lineage_of(config, setup.source, parents, hashes))
    write_text_atomic(folder / "config.yaml", to_yaml(with_absolute_paths(config)))
    if setup.model:
        training = TrainingFiles({}, TrainingState().to_json())
        CheckpointStore(folder).save(setup.model, setup.tokenizer, training, 0, None, setup.metadata)


def _record_of(config: Config, parent: ParentModel) -> Parent:
    """Return the entry of ``lineage.json`` about the parent."""
    path = str(Path(config.finetuning.model).resolve())
    return Parent(path, parent.folder.name, sha256_file(parent.folder / WEIGHTS))


def _open_parent(config: Config, console: Console) -> ParentModel:
    """Load the model that the run starts from; its LoRA, if any, is merged."""
    name = config.finetuning.model
    folder = model_folder(Path(name), "best", console)
    loaded = load_model(folder)
    if loaded.metadata.lora:
        merge(loaded.model)
        remove_lora(loaded.model)
    return ParentModel(name, folder, loaded, lambda: _held_out_text(Path(name)))


def _check_parent(config: Config, parent: ParentModel) -> None:
    """Raise ``ConfigError`` if no run can start from the parent."""
    loaded = parent.loaded
    if loaded.metadata.task:
        raise ConfigError(
            f"{parent.name}: is fine-tuned for {loaded.metadata.task.kind} already; start from the model it came from"
        )
    _check_architecture(config.model, loaded.model.config, parent.name)
    check_windows(config.windows, loaded.model.context_length)


def _held_out_text(run: Path) -> TokenShards:
    """Return the held-out text of the pretraining run that the model in ``run`` goes back to."""
    while recorded_config(run).finetuning.task is not TaskKind.pretraining:
        run = Path(read_lineage(run)["parents"][0]["model"])
    return run_data(run).validation


def _warn_of_warmup(asked: Config, resolved: Config, console: Console) -> None:
    """Warn if the warm-up that was asked for is longer than the run."""
    given, steps = asked.schedule.warmup_steps, resolved.training.steps
    if given > resolved.schedule.warmup_steps:
        console.warn(
            f"schedule.warmup_steps is {given:,} and the run has {steps:,} steps, so the rate would not fall; "
            f"the warm-up is {resolved.schedule.warmup_steps:,} steps"
        )


def _check_architecture(asked: ModelConfig, parent: ModelConfig, where: str) -> None:
    """Raise ``ConfigError`` if ``asked`` differs from the architecture of the parent."""
    default = to_mapping(ModelConfig())
    theirs = to_mapping(parent)
    for name, value in to_mapping(asked).items():
        if name not in ("dropout", "vocab_size") and value not in (default[name], theirs[name]):
            raise ConfigError(
                f"model.{name} is {value}, and {theirs[name]} in {where}, whose architecture stays; leave it out"
            )


def _checked(config: Config, console: Console) -> Config:
    """Check ``config``, and that this machine can run it, before anything is read."""
    check(config)
    config = _eager_without_compiler(config, console)
    runtime.decide(config)
    return config


def _eager_without_compiler(config: Config, console: Console) -> Config:
    """Return ``config``, without compilation if PyTorch's compiler does not work here; warn of that."""
    if config.precision.execution is Execution.eager:
        return config
    problem = runtime.compiler_problem(runtime.choose_device(config.runtime.device))
    if not problem:
        return config
    console.warn(f"compiling fails here ({problem}); training runs operation by operation instead")
    eager = dataclasses.replace(config.precision, execution=Execution.eager)
    return dataclasses.replace(config, precision=eager)


def changed_settings(config: Config) -> list[str]:
    """Return the settings that are not their defaults, as SECTION.FIELD."""
    given, default = to_mapping(config), to_mapping(Config())
    return [
        f"{section}.{name}"
        for section, fields in default.items()
        for name, value in fields.items()
        if given[section][name] != value
    ]
