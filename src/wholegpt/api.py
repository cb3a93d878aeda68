"""Training runs: where data, model, loop, evaluation, samples and report are wired together."""

import dataclasses
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import torch

from wholegpt import presets, runtime
from wholegpt.analysis.report import write_report
from wholegpt.checkpoint import CheckpointStore, TrainingFiles, load_model, load_training
from wholegpt.checks import check
from wholegpt.config import Config, Determinism, Execution, GenerationConfig, TokenizerConfig
from wholegpt.console import Console
from wholegpt.data import Corpus, PreparedData, make_loader, open_corpus, prepare, windows_before
from wholegpt.errors import CheckpointError, ConfigError, Interrupted, NumericsError
from wholegpt.evaluation import TextScore, evaluate_tokens
from wholegpt.files import read_json, write_folder_atomic, write_json_atomic, write_text_atomic
from wholegpt.generation import encode_prompt, generate
from wholegpt.language_model import LanguageModel, load
from wholegpt.mapping import to_mapping, to_yaml
from wholegpt.model import Transformer, parameter_count
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
from wholegpt.run_folder import check_free, free_name, lineage_of, read_lineage, recorded_config, run_data
from wholegpt.training import callbacks
from wholegpt.training.averaging import averaged, exchange
from wholegpt.training.loop import Callback
from wholegpt.training.loop import train as run_loop
from wholegpt.training.objectives import LanguageModeling
from wholegpt.training.optimizers import load_optimizer_tensors, make_run_optimizer, optimizer_tensors
from wholegpt.training.resolution import resolve
from wholegpt.training.state import TrainingState

RUNS = Path("runs")
PLAN = "plan.json"


@dataclass(frozen=True)
class Run:
    """A training run on disk, and how it ended."""

    path: Path
    config: Config
    state: TrainingState
    validation: TextScore
    """Of the last weights, on the whole validation text."""
    sample: str
    """Written by the last weights."""
    plan: dict[str, Any] | None = None
    """What was planned, as ``wholegpt plan --json`` gives it; none without a time budget."""

    def load(self, checkpoint: str = "best") -> LanguageModel:
        """The trained model."""
        return load(self.path, checkpoint=checkpoint)

    def to_json(self) -> dict[str, Any]:
        """What ``wholegpt train --json`` prints."""
        best = self.state.best
        return {
            "run": str(self.path),
            "steps": self.state.step,
            "planned_steps": self.config.training.steps,
            "stop_reason": self.state.stop_reason or "all steps are done",
            "tokens": self.state.tokens,
            "train_seconds": self.state.train_seconds,
            "other_seconds": self.state.other_seconds,
            "parameters": parameter_count(self.config.model).total,
            "validation": self.validation.to_json(),
            **({"plan": self.plan} if self.plan else {}),
            "best": {"step": best.step, **best.validation} if best else None,
            "sample": self.sample,
        }


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
) -> Run:
    """Train a model on text: files, folders, corpus names, or a folder made by ``data prepare``.

    Settings come from ``config``, or from the ``recipe`` of that name, or are the defaults. With ``minutes``
    the model and its training are planned to take that long, everything included, from now or from ``started``
    (of ``time.monotonic``), and ``config`` may only differ in the rest. The run is written to ``out``
    (``runs/NAME`` unless given). ``max_seconds`` stops early, resumably. Raises ``RunError`` if ``out`` holds a
    run and ``overwrite`` is not set.
    """
    budget = None if minutes is None else Budget(minutes, started)
    console = console or Console()
    if config and recipe:
        raise ConfigError(
            "both config and recipe are given; give one: wg.configure(changes, base=wg.recipe(NAME))"
        )
    chosen = config or (presets.recipe(recipe) if recipe else Config())
    chosen = _with_sources(chosen, sources)
    run = start_run(chosen, Path(out) if out else None, overwrite, console, budget)
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
    refuse_planned(minutes, _changed(chosen))
    if machine and memory < math.inf:
        raise ConfigError("memory and machine are given; a machine that is described has its own memory")
    if machine and not chosen.data.source:
        return plan_elsewhere(chosen, ENGLISH_PROSE, ENGLISH, minutes, machine)
    with tempfile.TemporaryDirectory() as folder:
        chosen, corpus = _open_text(chosen, console)
        data = _prepared(chosen, corpus, Path(folder) / "data", console)
        if machine:
            return plan_elsewhere(
                chosen, Text.of(data), measure_difficulty(chosen, data, console), minutes, machine
            )
        return make_plan(chosen, data, budget, memory, console)


def _with_sources(config: Config, sources: tuple[str | Path, ...]) -> Config:
    if not sources:
        return config
    data = dataclasses.replace(config.data, source=tuple(map(str, sources)), card="")
    return dataclasses.replace(config, data=data)


def _changed(config: Config) -> list[str]:
    """Settings that are not their defaults, as SECTION.FIELD."""
    given, default = to_mapping(config), to_mapping(Config())
    return [
        f"{section}.{name}"
        for section, fields in default.items()
        for name, value in fields.items()
        if given[section][name] != value
    ]


def resume(
    run: str | Path,
    *,
    max_seconds: float | None = None,
    allow_different_numerics: bool = False,
    console: Console | None = None,
) -> Run:
    """Go on with a run that was stopped, to the same weights, bit for bit, as if it never had been.

    Raises ``NumericsError`` where a recorded choice (dtype, threads, processor, PyTorch) is not
    available here, unless ``allow_different_numerics``.
    """
    console = console or Console()
    path = Path(run)
    config = recorded_config(path)
    problems = runtime.check_available(config, read_lineage(path).get("machine", {}))
    if problems and not allow_different_numerics:
        raise NumericsError(
            f"{path}: cannot go on bit for bit: {'; '.join(problems)}; "
            "--allow-different-numerics goes on all the same"
        )
    if problems:
        console.warn(f"going on with different numerics: {'; '.join(problems)}")
        config = runtime.decide(runtime.without_unavailable(config))
        write_text_atomic(path / "config.yaml", to_yaml(config))
        write_json_atomic(path / "lineage.json", {**read_lineage(path), "machine": runtime.machine()})
    return continue_run(path, max_seconds=max_seconds, console=console)


def start_run(
    config: Config, out: Path | None, overwrite: bool, console: Console, budget: Budget | None = None
) -> Path:
    """Prepare the data, decide everything, and write the run's folder, ready for its first step."""
    check(config)
    if budget:
        refuse_planned(budget.minutes, _changed(config))
    config = _eager_without_compiler(config, console)
    runtime.decide(config)
    config, corpus = _open_text(config, console)
    name = corpus.name if corpus else Path(config.data.source[0]).name
    folder = out or free_name(RUNS / name)
    check_free(folder, config, overwrite)

    def fill(target: Path) -> None:
        data = _prepared(config, corpus, target / "data", console)
        data.warn_unless(config.data.card, console)
        if budget:
            plan = make_plan(config, data, budget, math.inf, console)
            write_json_atomic(target / PLAN, plan.to_json())
            console.note(plan.describe())
            resolved = plan.config
        else:
            resolved = resolve(config, data)
        data.tokenizer.save(target / "tokenizer.json")
        write_json_atomic(target / "lineage.json", lineage_of(resolved, data))
        write_text_atomic(target / "config.yaml", to_yaml(resolved))

    # Whole or not at all: a source that turns out to be bad costs no run that was there before.
    write_folder_atomic(folder, fill)
    return folder


def _open_text(config: Config, console: Console) -> tuple[Config, Corpus | None]:
    """The corpus that ``config`` names; none where it names prepared data, whose folder and tokenizer it then has."""
    folder = Path(config.data.source[0]) if len(config.data.source) == 1 else None
    if folder is None or not PreparedData.exists(folder):
        return config, open_corpus(config.data)
    # Absolute, so that the run can be resumed from any folder.
    console.note(f"{folder} is prepared data: its own tokenizer and split are used")
    data = dataclasses.replace(config.data, source=(str(folder.resolve()),))
    return dataclasses.replace(config, data=data, tokenizer=TokenizerConfig(path=str(folder.resolve()))), None


def _prepared(config: Config, corpus: Corpus | None, folder: Path, console: Console) -> PreparedData:
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


def continue_run(path: Path, *, max_seconds: float | None, console: Console) -> Run:
    """Train from the last good checkpoint, or from the beginning, to the end of the plan.

    Raises ``Interrupted`` when the user stops it, in the loop or outside it.
    """
    try:
        return _continue_run(path, max_seconds, console)
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted; what was saved is kept; go on with `wholegpt train --resume {quote(str(path))}`"
        ) from None


def _continue_run(path: Path, max_seconds: float | None, console: Console) -> Run:
    config = recorded_config(path)
    data = run_data(path)
    device = runtime.apply(config.runtime)
    model, optimizer, state = _restore(path, config, console)
    log = callbacks.MetricsLog(path / "metrics.jsonl")
    log.rewind(state.step)
    store = CheckpointStore(path, config.checkpointing.keep)
    quiet = Console(quiet=True)

    def evaluate(sample: int) -> TextScore:
        model.eval()
        with runtime.memory_apart(), averaged(optimizer):
            return evaluate_tokens(
                model,
                data.validation,
                data.tokenizer,
                device,
                config.precision.dtype,
                quiet,
                sample=sample,
                documents=config.windows.documents,
            )

    def write_sample() -> str:
        model.eval()
        settings = GenerationConfig(max_tokens=config.logging.sample_tokens, seed=config.runtime.seed)
        prompt = config.logging.sample_prompt
        with runtime.memory_apart(), averaged(optimizer):
            prompt_ids = encode_prompt(model, data.tokenizer, "", prompt, False, quiet)
            return prompt + generate(model, data.tokenizer, [prompt_ids], [settings], device, quiet)[0].text

    def save(state: TrainingState) -> None:
        best = state.best.step if state.best else None
        with averaged(optimizer):  # the weights themselves are then in the optimiser's state
            training = TrainingFiles(optimizer_tensors(optimizer), state.to_json())
            store.save(model, data.tokenizer, training, state.step, best, data.manifest.control)

    _say_plan(path, config, data, state, console)
    planned = read_json(path / PLAN) if (path / PLAN).exists() else None
    loader = make_loader(data, config)
    with (
        callbacks.StopOnSignal(console) as signals,
        console.progress("training", config.training.steps, state.step) as progress,
    ):
        steps: list[Callback] = [
            callbacks.LogMetrics(log, config),
            callbacks.Validate(lambda: evaluate(config.evaluation.tokens).to_json(), log, config),
            callbacks.Sample(write_sample, log, config, console),
            *([callbacks.TimeLimit(max_seconds)] if max_seconds is not None else []),
            *([callbacks.WatchPace(planned["train_seconds"], config, console)] if planned else []),
            signals,
            callbacks.SaveCheckpoints(save, config),
            callbacks.ShowProgress(progress),
        ]
        run_loop(model, optimizer, LanguageModeling(), loader, config, state, steps)
    if state.stop_reason == callbacks.StopOnSignal.REASON:
        raise Interrupted(
            f"interrupted; saved after step {state.step:,} of {config.training.steps:,}; "
            f"go on with `wholegpt train --resume {quote(str(path))}`"
        )
    validation, sample = evaluate(0), write_sample()
    run = Run(path, config, state, validation, sample, planned)
    write_report(path, run.to_json())
    return run


def _restore(
    path: Path, config: Config, console: Console
) -> tuple[Transformer, torch.optim.Optimizer, TrainingState]:
    """Model, optimiser and counters from the last good checkpoint, or fresh ones before the first."""
    store, device = CheckpointStore(path), torch.device(config.runtime.device)
    step, problems = store.last_good()
    if step is None:
        if problems:
            raise CheckpointError(
                f"{path}: no usable checkpoint: {'; '.join(problems)}; "
                f"delete {store.folder} to begin again from step 0"
            )
        model = Transformer(config.model, config.precision.attention, config.training.recompute).to(device)
        return model, make_run_optimizer(model, config), TrainingState()
    for problem in problems:
        console.warn(f"{problem}; going on from {store.path(step).name}")
    folder = store.path(step)
    model = load_model(folder, device, config.precision.attention, config.training.recompute).model
    optimizer = make_run_optimizer(model, config)
    files = load_training(folder)
    load_optimizer_tensors(optimizer, files.optimizer)
    exchange(optimizer)
    state = TrainingState.from_json(files.state)
    if state.stop_reason in (callbacks.StopOnSignal.REASON, callbacks.TimeLimit.REASON):
        state.stop_reason = ""
    return model, optimizer, state


def _say_plan(path: Path, config: Config, data: PreparedData, state: TrainingState, console: Console) -> None:
    manifest, model = data.manifest, config.model
    tokens = windows_before(config.training.steps, config.training) * model.context_length
    console.note(
        f"training: {manifest.train.tokens:,} tokens; validation: {manifest.validation.tokens:,} ({manifest.split})"
    )
    console.note(
        f"{parameter_count(model).total:,} parameters; {config.training.steps:,} steps, {tokens:,} tokens "
        f"({tokens / max(manifest.train.tokens, 1):.1f} passes); {config.precision.dtype} on "
        f"{config.runtime.device}, {config.runtime.threads} threads; run {path}"
    )
    nearest, differing = presets.published_architecture(model)
    if differing:
        console.note(
            f"this model will not open in other programs: it is nearest to {nearest}, but for {', '.join(differing)}"
        )
    if config.runtime.determinism is Determinism.strict:
        console.note(
            "strict determinism: operations that do not repeat bit for bit are refused; on a GPU the steps "
            "are slower, without cuDNN's search for the fastest kernel, and cuBLAS holds 32 MiB a stream"
        )
    if state.step:
        console.note(f"going on after step {state.step:,}")
