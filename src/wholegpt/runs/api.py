"""What `import wholegpt` does with runs: train, plan, fine-tune, resume."""

import contextlib
import dataclasses
import math
import tempfile
from pathlib import Path
from typing import Any

from wholegpt import runtime
from wholegpt.console import Console
from wholegpt.data.reading.sources import check_sources
from wholegpt.errors import ConfigError, NumericsError
from wholegpt.evaluation import TextScore
from wholegpt.files import lock_folder, write_json_atomic, write_text_atomic
from wholegpt.planning import (
    ENGLISH,
    ENGLISH_PROSE,
    Budget,
    Machine,
    Plan,
    Text,
    make_plan,
    measure_difficulty,
    plan_elsewhere,
    refuse_planned,
)
from wholegpt.runs.create import changed_settings, create_run
from wholegpt.runs.folder import read_lineage, recorded_config
from wholegpt.runs.train import Run, continue_run
from wholegpt.settings import presets
from wholegpt.settings.choices import TaskKind
from wholegpt.settings.schema import Config
from wholegpt.settings.serialization import to_yaml
from wholegpt.settings.validation import check, check_max_seconds
from wholegpt.stages.registry import default_recipe
from wholegpt.stages.text_source import open_text, prepared_text


def train(
    *sources: str | Path,
    recipe: str | None = None,
    config: Config | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    max_seconds: float | None = None,
    minutes: float | None = None,
    started: float | None = None,
    console: Console | None = None,
) -> Run[TextScore]:
    """Train a model on text: files, folders, corpus names, or a folder made by ``data prepare``.

    A source is a name, never the text itself: write that to a file first.

    Settings come from ``config``, or from the ``recipe`` of that name, or are the defaults. With ``minutes``
    the model and its training are planned to take that long, everything included, from now or from ``started``
    (of ``time.monotonic``), and ``config`` may only differ in the rest. The run is written to ``out``
    (``runs/NAME`` unless given). ``max_seconds`` stops early, resumably. Raises ``RunError`` if ``out`` holds a
    run and ``overwrite`` is not set.
    """
    check_max_seconds("max_seconds", max_seconds)
    budget = None if minutes is None else Budget(minutes, started)
    console = console or Console()
    if config and recipe:
        raise ConfigError(
            "both config and recipe are given; give one: wg.configure(changes, base=wg.recipe(NAME))"
        )
    chosen = _checked_type(config) or (presets.recipe(recipe) if recipe else Config())
    chosen = _with_sources(chosen, sources)
    if chosen.finetuning.model:
        raise ConfigError(
            f"finetuning.model is '{chosen.finetuning.model}'; `wholegpt finetune` starts from a trained model"
        )
    with contextlib.ExitStack() as locks:
        run = create_run(chosen, Path(out) if out else None, overwrite, console, budget, locks)
        return continue_run(run, max_seconds=max_seconds, console=console)


def finetune(
    model: str | Path,
    data: str | Path,
    *,
    task: TaskKind | str,
    validation: str | Path = "",
    recipe: str = "",
    config: Config | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    max_seconds: float | None = None,
    console: Console | None = None,
) -> Run[Any]:
    """Adapt a trained model to a task: classification, entailment, similarity, choice, instruct, or more pretraining.

    ``data`` are the training examples, a table (.csv, .tsv, .jsonl, .json); ``validation`` the held-out ones, a share
    of the training ones unless given. For pretraining ``data`` is text, as for ``train``. Settings come from
    ``config``, or from the ``recipe`` (finetune, or instruct, unless given). The run is written to ``out``
    (``runs/NAME-TASK`` unless given), and whatever it needs with it. Raises ``DataError`` for examples that do not fit
    the task.
    """
    check_max_seconds("max_seconds", max_seconds)
    console = console or Console()
    if task not in list(TaskKind):
        raise ConfigError(f"task is '{task}'; {presets.nearest(str(task), list(TaskKind))}")
    kind = TaskKind(task)
    chosen = _checked_type(config) or presets.recipe(recipe or default_recipe(kind))
    settings = dataclasses.replace(chosen.finetuning, task=kind, model=str(model))
    if kind is TaskKind.pretraining:
        if validation:
            raise ConfigError(
                "validation is for tasks; of a text a part is held out (data.validation_fraction)"
            )
        chosen = _with_sources(chosen, (data,))
    else:
        held_out = str(validation) or settings.validation
        settings = dataclasses.replace(settings, data=str(data), validation=held_out)
    chosen = dataclasses.replace(chosen, finetuning=settings)
    with contextlib.ExitStack() as locks:
        run = create_run(chosen, Path(out) if out else None, overwrite, console, locks=locks)
        return continue_run(run, max_seconds=max_seconds, console=console)


def plan(
    *sources: str | Path,
    minutes: float,
    config: Config | None = None,
    memory: float = math.inf,
    machine: Machine | None = None,
    started: float | None = None,
    console: Console | None = None,
) -> Plan:
    """What ``train`` with these ``minutes`` would do, without doing it.

    The text and this machine are measured for some seconds; the process is planned to fill at most ``memory``
    bytes. With a ``machine`` described, which has a memory of its own, only the text is measured, and without
    ``sources`` nothing: the plan is for English prose. Raises ``ConfigError`` for what a plan decides itself,
    a time too short and a memory too small, ``DataError`` for a text too small to plan for.
    """
    budget, console = Budget(minutes, started), console or Console()
    chosen = _with_sources(config or Config(), sources)
    check(chosen)
    refuse_planned(minutes, changed_settings(chosen))
    if machine and memory < math.inf:
        raise ConfigError("memory and machine are given; a machine that is described has its own memory")
    if machine and not chosen.data.source:
        return plan_elsewhere(chosen, ENGLISH_PROSE, ENGLISH, minutes, machine)
    with tempfile.TemporaryDirectory() as folder:
        chosen, corpus = open_text(chosen, console)
        data = prepared_text(chosen, corpus, Path(folder) / "data", console)
        if machine:
            return plan_elsewhere(
                chosen, Text.of(data), measure_difficulty(chosen, data, console), minutes, machine
            )
        return make_plan(chosen, data, budget, memory, console)


def _checked_type(config: Config | None) -> Config | None:
    """``config``; raises ``ConfigError`` for anything but settings."""
    if config is not None and not isinstance(config, Config):
        raise ConfigError(
            f"config is of type {type(config).__name__}; make settings of it by wg.configure(...)"
        )
    return config


def _with_sources(config: Config, sources: tuple[str | Path, ...]) -> Config:
    if not sources:
        return config
    check_sources(sources)
    data = dataclasses.replace(config.data, source=tuple(map(str, sources)), card="")
    return dataclasses.replace(config, data=data)


def resume(
    run: str | Path,
    *,
    max_seconds: float | None = None,
    allow_different_numerics: bool = False,
    console: Console | None = None,
) -> Run[Any]:
    """Go on with a run that was stopped, to the same weights, bit for bit, as if it never had been.

    Raises ``NumericsError`` where a recorded choice (dtype, threads, processor, PyTorch) is not
    available here, unless ``allow_different_numerics``.
    """
    check_max_seconds("max_seconds", max_seconds)
    console = console or Console()
    path = Path(run)
    recorded_config(path)  # before a lock beside what is no run
    with lock_folder(path, "train"):
        _accept_numerics(path, allow_different_numerics, console)
        return continue_run(path, max_seconds=max_seconds, console=console)


def _accept_numerics(path: Path, allow_different_numerics: bool, console: Console) -> None:
    """Raise ``NumericsError`` where the recorded numerics are not available; or record others, where allowed."""
    config = recorded_config(path)
    problems = runtime.check_available(config, read_lineage(path).get("machine", {}))
    if problems and not allow_different_numerics:
        raise NumericsError(
            f"{path}: cannot go on bit for bit: {'; '.join(problems)}; "
            "--allow-different-numerics goes on all the same"
        )
    if problems:
        console.warn(f"continuing with different numerics: {'; '.join(problems)}")
        config = runtime.decide(runtime.without_unavailable(config))
        write_text_atomic(path / "config.yaml", to_yaml(config))
        write_json_atomic(path / "lineage.json", {**read_lineage(path), "machine": runtime.machine()})
