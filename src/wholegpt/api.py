"""Training runs: where data, model, loop, evaluation, samples and report are wired together."""

import dataclasses
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from shlex import quote
from typing import Any

import safetensors
import tokenizers
import torch

from wholegpt import config as configuration
from wholegpt import presets, runtime
from wholegpt.analysis.report import write_report
from wholegpt.checkpoint import CheckpointStore, TrainingFiles, load_model, load_training
from wholegpt.checks import check, complete_model, complete_optimizer
from wholegpt.config import Config, Determinism, Dtype, Execution, GenerationConfig, TokenizerConfig
from wholegpt.console import Console
from wholegpt.data import PreparedData, WindowLoader, open_corpus, prepare, windows_before
from wholegpt.errors import CheckpointError, ConfigError, DataError, Interrupted, NumericsError, RunError
from wholegpt.evaluation import TextScore, evaluate_tokens
from wholegpt.files import read_json, write_folder_atomic, write_json_atomic, write_text_atomic
from wholegpt.generation import generate
from wholegpt.language_model import LanguageModel, load
from wholegpt.model import Transformer, parameter_count
from wholegpt.training import callbacks
from wholegpt.training.averaging import averaged, exchange
from wholegpt.training.loop import Callback
from wholegpt.training.loop import train as run_loop
from wholegpt.training.memory import fitting_micro_batch
from wholegpt.training.objectives import LanguageModeling
from wholegpt.training.optimizers import load_optimizer_tensors, make_optimizer, optimizer_tensors
from wholegpt.training.state import TrainingState

RUNS = Path("runs")


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
    console: Console | None = None,
) -> Run:
    """Train a model on text: files, folders, corpus names, or a folder made by ``data prepare``.

    Settings come from ``config``, or from the ``recipe`` of that name, or are the defaults. The run is
    written to ``out`` (``runs/NAME`` unless given). ``max_seconds`` stops early, resumably. Raises
    ``RunError`` if ``out`` holds a run and ``overwrite`` is not set.
    """
    console = console or Console()
    if config and recipe:
        raise ConfigError(
            "both config and recipe are given; give one: wg.configure(changes, base=wg.recipe(NAME))"
        )
    chosen = config or (presets.recipe(recipe) if recipe else Config())
    if sources:
        data = dataclasses.replace(chosen.data, source=tuple(map(str, sources)))
        chosen = dataclasses.replace(chosen, data=data)
    run = start_run(chosen, Path(out) if out else None, overwrite, console)
    return continue_run(run, max_seconds=max_seconds, console=console)


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
    config = _recorded_config(path)
    problems = runtime.check_available(config, read_lineage(path).get("machine", {}))
    if problems and not allow_different_numerics:
        raise NumericsError(
            f"{path}: cannot go on bit for bit: {'; '.join(problems)}; "
            "--allow-different-numerics goes on all the same"
        )
    if problems:
        console.warn(f"going on with different numerics: {'; '.join(problems)}")
        config = runtime.decide(runtime.without_unavailable(config))
        write_text_atomic(path / "config.yaml", configuration.to_yaml(config))
        write_json_atomic(path / "lineage.json", {**read_lineage(path), "machine": runtime.machine()})
    return continue_run(path, max_seconds=max_seconds, console=console)


def resolve(config: Config, data: PreparedData) -> Config:
    """``config`` with everything decided that depends on the corpus and on this machine.

    Raises ``ConfigError`` or ``DataError`` where the two do not fit together: another vocabulary, fewer
    tokens than a window, nothing held out, a sample prompt that cannot be encoded.
    """
    check(config)
    vocab_size = config.model.vocab_size or data.tokenizer.vocab_size
    if vocab_size != data.tokenizer.vocab_size:
        raise ConfigError(
            f"model.vocab_size is {vocab_size} and the tokenizer has {data.tokenizer.vocab_size} tokens; "
            "set it to 0 to take the tokenizer's"
        )
    model = complete_model(dataclasses.replace(config.model, vocab_size=vocab_size))
    loader = WindowLoader(data.train, model.context_length, config.training, seed=0)
    if len(data.validation) < 2:
        raise DataError(
            f"{data.manifest.corpus}: the held-out part has {len(data.validation)} token(s), "
            "too few to measure on; give more text"
        )
    data.tokenizer.encode(config.logging.sample_prompt)
    windows = config.training.epochs * loader.windows_per_epoch
    steps = config.training.steps or max(1, round(windows / config.training.batch_size))
    training = dataclasses.replace(config.training, steps=steps, epochs=0.0)
    optimizer = complete_optimizer(config.optimizer)
    config = runtime.decide(dataclasses.replace(config, model=model, training=training, optimizer=optimizer))
    rows = training.micro_batch_size or fitting_micro_batch(
        config, runtime.free_memory(torch.device(config.runtime.device))
    )
    training = dataclasses.replace(training, micro_batch_size=min(rows, training.batch_size))
    return dataclasses.replace(config, training=training)


def start_run(config: Config, out: Path | None, overwrite: bool, console: Console) -> Path:
    """Prepare the data, decide everything, and write the run's folder, ready for its first step."""
    check(config)
    config = _eager_without_compiler(config, console)
    runtime.decide(config)
    prepared, corpus = _prepared_source(config), None
    if prepared is None:
        corpus = open_corpus(config.data)
    else:
        # Absolute, so that the run can be resumed from any folder.
        console.note(f"{prepared} is prepared data: its own tokenizer and split are used")
        config = dataclasses.replace(
            config,
            data=dataclasses.replace(config.data, source=(str(prepared.resolve()),)),
            tokenizer=TokenizerConfig(path=str(prepared.resolve())),
        )
    name = corpus.name if corpus else Path(config.data.source[0]).name
    folder = out or _free_name(RUNS / name)
    for source in config.data.source:
        if Path(source).resolve().is_relative_to(folder.resolve()):
            raise RunError(f"{folder}: holds {source}, which the run is to be trained on; name another --out")
    if (folder / "config.yaml").exists() and not overwrite:
        raise RunError(
            f"{folder}: already holds a run; go on with it by --resume {quote(str(folder))}, name another --out, "
            "or add --overwrite to replace it"
        )
    if (
        folder.exists()
        and not (folder / "config.yaml").exists()
        and (folder.is_file() or any(folder.iterdir()))
    ):
        raise RunError(f"{folder}: exists and is not a run; name another --out")

    def fill(target: Path) -> None:
        if corpus:
            data = prepare(corpus, config.data, config.tokenizer, target / "data", console)
        else:
            data = PreparedData.open(Path(config.data.source[0]))
        resolved = resolve(config, data)
        data.tokenizer.save(target / "tokenizer.json")
        write_json_atomic(target / "lineage.json", _lineage(resolved, data))
        write_text_atomic(target / "config.yaml", configuration.to_yaml(resolved))

    # Whole or not at all: a source that turns out to be bad costs no run that was there before.
    write_folder_atomic(folder, fill)
    return folder


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


def _prepared_source(config: Config) -> Path | None:
    """The folder of prepared data that the config names as its only source, if it does."""
    folder = Path(config.data.source[0]) if len(config.data.source) == 1 else None
    return folder if folder and PreparedData.exists(folder) else None


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
    config = _recorded_config(path)
    data = run_data(path)
    device = runtime.apply(config.runtime)
    model, optimizer, state = _restore(path, config, console)
    log = callbacks.MetricsLog(path / "metrics.jsonl")
    log.rewind(state.step)
    store = CheckpointStore(path, config.checkpointing.keep)
    quiet = Console(quiet=True)

    def evaluate(sample: int) -> TextScore:
        model.eval()
        with averaged(optimizer):
            return evaluate_tokens(
                model, data.validation, data.tokenizer, device, config.precision.dtype, quiet, sample=sample
            )

    def write_sample() -> str:
        model.eval()
        settings = GenerationConfig(max_tokens=config.logging.sample_tokens, seed=config.runtime.seed)
        prompt = config.logging.sample_prompt
        with averaged(optimizer):
            return prompt + generate(model, data.tokenizer, prompt, settings, device, quiet).text

    def save(state: TrainingState) -> None:
        best = state.best.step if state.best else None
        with averaged(optimizer):  # the weights themselves are then in the optimiser's state
            training = TrainingFiles(optimizer_tensors(optimizer), state.to_json())
            store.save(model, data.tokenizer, training, state.step, best)

    _say_plan(path, config, data, state, console)
    loader = WindowLoader(data.train, config.model.context_length, config.training, config.runtime.seed)
    with (
        callbacks.StopOnSignal(console) as signals,
        console.progress("training", config.training.steps, state.step) as progress,
    ):
        steps: list[Callback] = [
            callbacks.LogMetrics(log, config),
            callbacks.Validate(lambda: evaluate(config.evaluation.tokens).to_json(), log, config),
            callbacks.Sample(write_sample, log, config, console),
            *([callbacks.TimeLimit(max_seconds)] if max_seconds is not None else []),
            signals,
            callbacks.SaveCheckpoints(save, config),
            callbacks.ShowProgress(progress),
        ]
        if config.precision.execution is Execution.compiled:
            for block in model.blocks:  # one compilation serves all of them
                block.compile()
        run_loop(model, optimizer, LanguageModeling(), loader, config, state, steps)
    if state.stop_reason == callbacks.StopOnSignal.REASON:
        raise Interrupted(
            f"interrupted; saved after step {state.step:,} of {config.training.steps:,}; "
            f"go on with `wholegpt train --resume {quote(str(path))}`"
        )
    validation, sample = evaluate(0), write_sample()
    run = Run(path, config, state, validation, sample)
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
        return model, _optimizer(model, config), TrainingState()
    for problem in problems:
        console.warn(f"{problem}; going on from {store.path(step).name}")
    folder = store.path(step)
    model = load_model(folder, device, config.precision.attention, config.training.recompute).model
    optimizer = _optimizer(model, config)
    files = load_training(folder)
    load_optimizer_tensors(optimizer, files.optimizer)
    exchange(optimizer)
    state = TrainingState.from_json(files.state)
    if state.stop_reason in (callbacks.StopOnSignal.REASON, callbacks.TimeLimit.REASON):
        state.stop_reason = ""
    return model, optimizer, state


def _optimizer(model: Transformer, config: Config) -> torch.optim.Optimizer:
    bfloat16 = config.precision.dtype is Dtype.bfloat16
    return make_optimizer(model, config.optimizer, torch.bfloat16 if bfloat16 else torch.float32)


def run_data(path: Path) -> PreparedData:
    """The tokens of the run at ``path``, checked to be those it began with."""
    own = path / "data"
    data = PreparedData.open(own if PreparedData.exists(own) else Path(_recorded_config(path).data.source[0]))
    if data.fingerprint != read_lineage(path).get("data"):
        raise DataError(f"{data.folder}: not the data that {path} began with; restore it, or start a new run")
    data.verify()
    return data


def _recorded_config(path: Path) -> Config:
    if not (path / "config.yaml").exists():
        raise RunError(f"{path}: not a run (it has no config.yaml)")
    config = presets.recipe(str(path / "config.yaml"))
    check(config)
    return config


def read_lineage(path: Path) -> dict[str, Any]:
    """A run's ``lineage.json``. Raises ``RunError`` when it cannot be read."""
    try:
        return read_json(path / "lineage.json")
    except (OSError, ValueError) as error:
        raise RunError(f"{path / 'lineage.json'}: cannot be read: {error}") from None


def _lineage(config: Config, data: PreparedData) -> dict[str, Any]:
    return {
        "format_version": 1,
        "corpus": data.manifest.corpus,
        "provenance": data.manifest.provenance,
        "data": data.fingerprint,
        "parents": [],
        "seed": config.runtime.seed,
        "versions": {
            "wholegpt": version("wholegpt"),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "tokenizers": tokenizers.__version__,
            "safetensors": safetensors.__version__,
        },
        "machine": runtime.machine(),
        "command": ["wholegpt", *sys.argv[1:]],
    }


def _free_name(wanted: Path) -> Path:
    """``wanted``, or with the first number from 2 on that makes it new."""
    number, free = 2, wanted
    while free.exists():
        number, free = number + 1, wanted.with_name(f"{wanted.name}-{number}")
    return free


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
