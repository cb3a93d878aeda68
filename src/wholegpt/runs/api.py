"""The Python interface to runs: train, plan, finetune, resume."""

import contextlib
import dataclasses
import math
import tempfile
from collections.abc import Sequence
from os import PathLike, fspath
from pathlib import Path
from shlex import quote
from typing import Any

from wholegpt import runtime
from wholegpt.console import Console
from wholegpt.data import Texts
from wholegpt.data.reading.sources import check_sources
from wholegpt.errors import ConfigError, NumericsError
from wholegpt.evaluation import TaskScore, TextScore
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
)
from wholegpt.runs.create import changed_settings, create_run
from wholegpt.runs.extend import extend_run, extended_at, last_state
from wholegpt.runs.folder import read_lineage, recorded_config
from wholegpt.runs.train import Run, continue_run
from wholegpt.settings import presets
from wholegpt.settings.choices import AlignmentMethod, TaskKind
from wholegpt.settings.keywords import checked_keywords
from wholegpt.settings.schema import Config
from wholegpt.settings.serialization import to_yaml
from wholegpt.settings.validation import check, check_max_seconds, refuse_planned
from wholegpt.stages.registry import default_recipe
from wholegpt.stages.text_source import open_text, prepared_text
from wholegpt.training.callbacks import PAUSES
from wholegpt.training.events import Callback


@checked_keywords
def train(
    *sources: str | Path,
    texts: Texts | None = None,
    recipe: str | None = None,
    config: Config | None = None,
    device: str = "",
    out: str | Path | None = None,
    overwrite: bool = False,
    max_seconds: float | None = None,
    minutes: float | None = None,
    started: float | None = None,
    callbacks: Sequence[Callback] = (),
    console: Console | None = None,
) -> Run[TextScore]:
    """Train a model on text: files, folders, corpus names, or a folder made by ``data prepare``.

    A source is a path or a name, never the text itself. For documents in memory, give ``texts`` instead: each is a
    text, or a record with the text in a field. ``device`` is that of ``RuntimeConfig``.

    Settings come from ``config``, or from the ``recipe`` of that name, or are the defaults. With ``minutes``, model
    and training are planned so that everything takes that long, from now or from ``started`` (of ``time.monotonic``);
    ``config`` may then only change settings that the plan does not decide. The run is written to ``out`` (default:
    ``runs/NAME``). ``max_seconds`` stops early; ``resume`` continues. The ``callbacks`` get the events of the run.
    Raises ``RunError`` if ``out`` has a run and ``overwrite`` is not set.
    """
    check_max_seconds("max_seconds", max_seconds)
    _check_callbacks(callbacks)
    budget = None if minutes is None else Budget(minutes, started)
    console = console or Console()
    if config and recipe:
        raise ConfigError(
            "both config and recipe are given; give one: wg.configure(changes, base=wg.recipe(NAME))"
        )
    chosen = _checked_type(config) or (presets.recipe(recipe) if recipe else Config())
    chosen = _on_device(_with_sources(chosen, sources, texts), device)
    if chosen.finetuning.model:
        raise ConfigError(
            f"finetuning.model is '{chosen.finetuning.model}'; `wholegpt finetune` starts from a trained model"
        )
    with contextlib.ExitStack() as locks:
        run = create_run(chosen, Path(out) if out else None, overwrite, console, budget, locks, texts)
        return continue_run(
            run,
            max_seconds=max_seconds,
            console=console,
            just_written=True,
            budget=budget,
            listeners=callbacks,
        )


@checked_keywords
def finetune(
    model: str | PathLike[str],
    data: str | Path,
    *,
    task: TaskKind | str,
    validation: str | Path = "",
    recipe: str = "",
    config: Config | None = None,
    device: str = "",
    out: str | Path | None = None,
    overwrite: bool = False,
    max_seconds: float | None = None,
    callbacks: Sequence[Callback] = (),
    console: Console | None = None,
) -> Run[Any]:
    """Fine-tune a trained model: classification, entailment, similarity, choice, instruct, or continued pretraining.

    ``data`` is a table of training examples (.csv, .tsv, .jsonl, .json, .parquet), ``validation`` one of held-out
    examples (default: a share of the training examples). For pretraining, ``data`` is text, as for ``train``. Settings
    come from ``config``, or from the ``recipe`` (default: finetune, or instruct). The run is written to ``out``
    (default: ``runs/NAME-TASK``) with everything that it needs. The ``callbacks`` get the events of the run. Raises
    ``DataError`` for examples that do not fit the task.
    """
    check_max_seconds("max_seconds", max_seconds)
    _check_callbacks(callbacks)
    console = console or Console()
    if task not in list(TaskKind):
        raise ConfigError(f"task is '{task}'; {presets.nearest(str(task), list(TaskKind))}")
    kind = TaskKind(task)
    chosen = _checked_type(config) or presets.recipe(recipe or default_recipe(kind))
    settings = dataclasses.replace(chosen.finetuning, task=kind, model=fspath(model))
    if kind is TaskKind.pretraining:
        if validation:
            raise ConfigError(
                "validation is for tasks; of a text a part is held out (data.validation_fraction)"
            )
        chosen = _with_sources(chosen, (data,))
    else:
        held_out = str(validation) or settings.validation
        settings = dataclasses.replace(settings, data=str(data), validation=held_out)
    chosen = _on_device(dataclasses.replace(chosen, finetuning=settings), device)
    with contextlib.ExitStack() as locks:
        run = create_run(chosen, Path(out) if out else None, overwrite, console, locks=locks)
        return continue_run(
            run, max_seconds=max_seconds, console=console, just_written=True, listeners=callbacks
        )


@checked_keywords
def align(
    model: str | PathLike[str],
    data: str | Path,
    *,
    method: AlignmentMethod | str,
    rewards: Sequence[str] = (),
    validation: str | Path = "",
    recipe: str = "",
    config: Config | None = None,
    device: str = "",
    out: str | Path | None = None,
    overwrite: bool = False,
    max_seconds: float | None = None,
    callbacks: Sequence[Callback] = (),
    console: Console | None = None,
) -> Run[TaskScore]:
    """Train an instruction-tuned model on preferences (reward, dpo) or rewards (ppo, grpo).

    ``data`` is a table of preference pairs (``wholegpt.data.examples.preferences`` lists the forms), or of prompts
    (``wholegpt.data.examples.prompts``) whose completions are judged by ``rewards``, such as "exact" or
    "0.5*contains:please". ``model``, which was tuned on instructions, is also the reference. Settings come from
    ``config``, or from the ``recipe`` (default: that of the method). The other parameters are those of ``finetune``.
    """
    if method not in list(AlignmentMethod):
        raise ConfigError(f"method is '{method}'; {presets.nearest(str(method), list(AlignmentMethod))}")
    kind = TaskKind(AlignmentMethod(method))
    if rewards:
        config = _checked_type(config) or presets.recipe(recipe or default_recipe(kind))
        recipe, given = "", dataclasses.replace(config.alignment, rewards=tuple(rewards))
        config = dataclasses.replace(config, alignment=given)
    return finetune(
        model,
        data,
        task=kind,
        validation=validation,
        recipe=recipe,
        config=config,
        device=device,
        out=out,
        overwrite=overwrite,
        max_seconds=max_seconds,
        callbacks=callbacks,
        console=console,
    )


@checked_keywords
def plan(
    *sources: str | Path,
    texts: Texts | None = None,
    minutes: float,
    config: Config | None = None,
    memory: float = math.inf,
    machine: Machine | None = None,
    started: float | None = None,
    console: Console | None = None,
) -> Plan:
    """Return what ``train`` would do with these ``minutes``, without training.

    The text (``sources``, or ``texts`` in memory) and this machine are measured for a few seconds; the process may use
    at most ``memory`` bytes. For another ``machine``, which has a memory of its own, only the text is measured; without
    ``sources``, the plan is for English prose. Raises ``ConfigError`` for settings that a plan decides itself, and for
    too little time or memory; ``DataError`` for too little text.
    """
    budget, console = Budget(minutes, started), console or Console()
    chosen = _with_sources(_checked_type(config) or Config(), sources, texts)
    check(chosen)
    refuse_planned(minutes, changed_settings(chosen))
    if machine and memory < math.inf:
        raise ConfigError("memory and machine are given; a machine that is described has its own memory")
    if machine and texts is None and not chosen.data.source:
        return plan_elsewhere(chosen, ENGLISH_PROSE, ENGLISH, minutes, machine)
    with tempfile.TemporaryDirectory() as folder:
        chosen, corpus = open_text(chosen, console, texts)
        data = prepared_text(chosen, corpus, Path(folder) / "data", console)
        if machine:
            difficulty = measure_difficulty(chosen, data, budget.spent(), console)
            return plan_elsewhere(chosen, Text.of(data), difficulty, minutes, machine)
        return make_plan(chosen, data, budget, memory, console)


def _checked_type(config: Config | None) -> Config | None:
    """Return ``config``. Raises ``ConfigError`` if it is not a ``Config``."""
    if config is not None and not isinstance(config, Config):
        raise ConfigError(
            f"config is of type {type(config).__name__}; make settings of it by wg.configure(...)"
        )
    return config


def _check_callbacks(callbacks: Sequence[Callback]) -> None:
    """Raise ``ConfigError`` unless ``callbacks`` is a list or a tuple of ``Callback`` objects."""
    if not isinstance(callbacks, (list, tuple)):
        raise ConfigError(f"callbacks is of type {type(callbacks).__name__}; expected a list of callbacks")
    for number, callback in enumerate(callbacks):
        if not isinstance(callback, Callback):
            found = "a class" if isinstance(callback, type) else f"of type {type(callback).__name__}"
            raise ConfigError(
                f"callbacks[{number}] is {found}; expected an object of a subclass of wg.Callback"
            )


def _on_device(config: Config, device: str) -> Config:
    """Return ``config`` for another device, if one is given."""
    runtime_config = dataclasses.replace(config.runtime, device=device or config.runtime.device)
    return dataclasses.replace(config, runtime=runtime_config)


def _with_sources(config: Config, sources: tuple[str | Path, ...], texts: object = None) -> Config:
    """Return ``config`` with the sources or, for ``texts``, without any. Raises ``ConfigError`` for both."""
    if texts is not None and sources:
        raise ConfigError("texts and a source are given; give one of them")
    if texts is None and not sources:
        return config
    check_sources(sources)
    data = dataclasses.replace(config.data, source=tuple(map(str, sources)), card="")
    return dataclasses.replace(config, data=data)


@checked_keywords
def resume(
    run: str | PathLike[str],
    *,
    steps: int | None = None,
    minutes: float | None = None,
    max_seconds: float | None = None,
    allow_different_numerics: bool = False,
    callbacks: Sequence[Callback] = (),
    console: Console | None = None,
) -> Run[Any]:
    """Continue a run that was stopped. The weights at its end are bit for bit those of a run without a stop.

    With ``steps``, a stopped or finished run is trained to this number of steps, with ``minutes`` for about this long;
    ``runs.extend.extend_run`` says with which learning rate. A run that was stopped early, or by a callback, is
    finished. The ``callbacks`` get the events of the run. Raises ``NumericsError`` if a recorded choice (dtype,
    threads, processor, PyTorch) is not available here, unless ``allow_different_numerics`` is set.
    """
    check_max_seconds("max_seconds", max_seconds)
    _check_callbacks(callbacks)
    if steps is not None and minutes is not None:
        raise ConfigError("steps and minutes are given; give one of them")
    console = console or Console()
    path = Path(run)
    recorded_config(path)  # before a lock beside what is no run
    with lock_folder(path, "train"):
        _accept_numerics(path, allow_different_numerics, console)
        if steps is not None or minutes is not None:
            extend_run(path, steps, minutes, console)
        else:
            _note_finished(path, console)
        return continue_run(path, max_seconds=max_seconds, console=console, listeners=callbacks)


def _note_finished(path: Path, console: Console) -> None:
    """Note that a finished run has no step left, and how to lengthen it."""
    state, planned = last_state(path), recorded_config(path).training.steps
    done, extended = state.step, extended_at(read_lineage(path))
    if done < planned and done != extended and state.stop_reason not in ("", *PAUSES):
        console.note(
            f"the run ended after step {done:,}: {state.stop_reason}; "
            f"`wholegpt train --resume {quote(str(path))} --training.steps {planned}` continues it"
        )
    if done and done >= planned:
        console.note(
            f"all {done:,} steps are done; `wholegpt train --resume {quote(str(path))} --training.steps {2 * done}` "
            "trains longer"
        )


def _accept_numerics(path: Path, allow_different_numerics: bool, console: Console) -> None:
    """Raise ``NumericsError`` if the recorded numerics are not available; if it is allowed, record others instead."""
    config = recorded_config(path)
    problems = runtime.check_available(config, read_lineage(path).get("machine", {}))
    if problems and not allow_different_numerics:
        raise NumericsError(
            f"{path}: cannot continue bit for bit: {'; '.join(problems)}; "
            "--allow-different-numerics continues with other numerics"
        )
    if problems:
        console.warn(f"continuing with different numerics: {'; '.join(problems)}")
        config = runtime.decide(runtime.without_unavailable(config))
        write_text_atomic(path / "config.yaml", to_yaml(config))
        write_json_atomic(path / "lineage.json", {**read_lineage(path), "machine": runtime.machine()})
