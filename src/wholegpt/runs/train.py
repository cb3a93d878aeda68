"""A run from its folder to its end: where model, data, loop, evaluation, samples and report are wired together."""

import time
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any, Generic, TypeVar, cast

import torch

from wholegpt import runtime
from wholegpt.analysis.report import write_report
from wholegpt.checkpoint import (
    CheckpointStore,
    ModelMetadata,
    TrainingFiles,
    load_metadata,
    load_model,
    load_training,
    make_model,
)
from wholegpt.console import Console
from wholegpt.data.chat.conversations import ConversationData
from wholegpt.data.examples.data import TaskData
from wholegpt.errors import CheckpointError, Interrupted
from wholegpt.files import lock_folder, read_json
from wholegpt.interrupts import interruptible
from wholegpt.language_model import LanguageModel
from wholegpt.model import TokenModel, Transformer
from wholegpt.model.baselines import NGram
from wholegpt.model.lora import trainable_parameters
from wholegpt.runs.folder import PLAN, recorded_config, run_data, run_examples
from wholegpt.runs.load import load
from wholegpt.settings import presets
from wholegpt.settings.choices import Architecture, Determinism, TaskKind
from wholegpt.settings.schema import Config, ModelConfig
from wholegpt.stages.classification import TaskTuning
from wholegpt.stages.instruction import InstructionTuning
from wholegpt.stages.masked import MaskedPretraining
from wholegpt.stages.pretraining import Forgetting, Pretraining
from wholegpt.tokenizers import Tokenizer
from wholegpt.training import callbacks
from wholegpt.training.averaging import averaged, exchange
from wholegpt.training.loop import Callback
from wholegpt.training.loop import train as run_loop
from wholegpt.training.optimizers import load_optimizer_tensors, make_run_optimizer, optimizer_tensors
from wholegpt.training.stage import Score, Stage
from wholegpt.training.state import TrainingState

S = TypeVar("S", bound=Score)


@dataclass(frozen=True)
class Run(Generic[S]):
    """A training run on disk, and how it ended."""

    path: Path
    config: Config
    state: TrainingState
    parameters: int
    """Numbers in the model."""
    validation: S
    """Of the last weights, on all that is held out."""
    sample: str
    """Written by the last weights."""
    forgetting: Forgetting | None = None
    """Of continued pretraining."""
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
            "task": self.config.finetuning.task,
            "steps": self.state.step,
            "planned_steps": self.config.training.steps,
            "stop_reason": self.state.stop_reason or "all steps are done",
            "tokens": self.state.tokens,
            "train_seconds": self.state.train_seconds,
            "other_seconds": self.state.other_seconds,
            "parameters": self.parameters,
            "validation": self.validation.to_json(),
            **({"forgetting": self.forgetting.to_json()} if self.forgetting else {}),
            **({"plan": self.plan} if self.plan else {}),
            "best": {"step": best.step, **best.validation} if best else None,
            "sample": self.sample,
        }


def continue_run(path: Path, *, max_seconds: float | None, console: Console) -> Run[Any]:
    """Train from the last good checkpoint, or from the beginning, to the end of the plan.

    Raises ``Interrupted`` when the user stops it, in the loop or outside it.
    """
    recorded_config(path)  # before a lock beside what is no run
    try:
        with lock_folder(path, "train"):
            return _continue_run(path, max_seconds, console)
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted; what was saved is kept; go on with `wholegpt train --resume {quote(str(path))}`"
        ) from None


def open_stage(path: Path, config: Config) -> Stage:
    """What the run at ``path`` trains for, over the data in its folder."""
    if config.finetuning.task is TaskKind.pretraining and config.model.architecture is Architecture.encoder:
        return MaskedPretraining(config, run_data(path))
    if config.finetuning.task is TaskKind.pretraining:
        return Pretraining(
            config, run_data(path), recorded_metadata(path) if config.finetuning.model else None
        )
    tokenizer, folder, metadata = (
        Tokenizer.load(path / "tokenizer.json"),
        run_examples(path),
        recorded_metadata(path),
    )
    if config.finetuning.task is TaskKind.instruct:
        return InstructionTuning(config, ConversationData.open(folder), tokenizer, metadata)
    return TaskTuning(config, TaskData.open(folder), tokenizer, metadata)


def recorded_metadata(path: Path) -> ModelMetadata:
    """What the last good checkpoint of a run says of its model."""
    return load_metadata(CheckpointStore(path).choose("last")[0])


def _continue_run(path: Path, max_seconds: float | None, console: Console) -> Run[Any]:
    config = recorded_config(path)
    stage = open_stage(path, config)
    device = runtime.apply(config.runtime)
    if config.model.architecture is Architecture.ngram:
        return _count_run(path, config, stage, device, console)
    model, optimizer, state = _restore(path, config, stage, console)
    log = callbacks.MetricsLog(path / "metrics.jsonl")
    log.rewind(state.step if state.step else -1)
    store = CheckpointStore(path, config.checkpointing.keep)

    def evaluate(whole: bool) -> Score:
        model.eval()
        with runtime.memory_apart(), averaged(optimizer):
            return stage.evaluate(model, device, whole)

    def write_sample() -> str:
        model.eval()
        with runtime.memory_apart(), averaged(optimizer):
            return stage.write(model, device)

    def save(state: TrainingState) -> None:
        best = state.best.step if state.best else None
        with averaged(optimizer):  # the weights themselves are then in the optimiser's state
            training = TrainingFiles(optimizer_tensors(optimizer, model), state.to_json())
            store.save(model, stage.tokenizer, training, state.step, best, stage.metadata)

    _say_plan(path, config, stage, model, state, console)
    planned = read_json(path / PLAN) if (path / PLAN).exists() else None
    writes = stage.metadata.task is None and config.model.architecture is not Architecture.encoder
    tuned, unfreeze_every = cast(Transformer, model), config.finetuning.unfreeze_every
    with (
        callbacks.StopOnSignal(console) as signals,
        console.progress("training", config.training.steps, state.step) as progress,
    ):
        validate = callbacks.Validate(lambda: evaluate(whole=False).to_json(), stage.criterion, log, config)
        if config.finetuning.model and not state.step:
            validate.run(state)  # what it could do before
        steps: list[Callback] = [
            *([callbacks.Unfreeze(tuned, unfreeze_every, state.step)] if unfreeze_every else []),
            callbacks.LogMetrics(stage.objective.unit, log, config),
            validate,
            *([callbacks.Sample(write_sample, log, config, console)] if writes else []),
            *([callbacks.TimeLimit(max_seconds)] if max_seconds is not None else []),
            *([callbacks.WatchPace(planned["train_seconds"], config, console)] if planned else []),
            signals,
            callbacks.SaveCheckpoints(save, config),
            callbacks.ShowProgress(progress, stage.criterion),
        ]
        run_loop(model, optimizer, stage.objective, stage.batches, config, state, steps)
    if state.stop_reason == callbacks.StopOnSignal.REASON:
        raise Interrupted(
            f"interrupted; saved after step {state.step:,} of {config.training.steps:,}; "
            f"go on with `wholegpt train --resume {quote(str(path))}`"
        )
    with runtime.memory_apart(), averaged(optimizer):
        forgetting = Forgetting.measure(path, model.eval(), config, stage.tokenizer)
    run = Run(
        path, config, state, model.parameter_count, evaluate(whole=True), write_sample(), forgetting, planned
    )
    write_report(path, run.to_json(), getattr(run.validation, "records", ()), stage.masks())
    return run


def _count_run(path: Path, config: Config, stage: Stage, device: torch.device, console: Console) -> Run[Any]:
    """A run whose model is counted: one step over the whole text, saved, measured and reported like any other."""
    assert isinstance(stage, Pretraining)
    store, log = CheckpointStore(path), callbacks.MetricsLog(path / "metrics.jsonl")
    state, text = TrainingState(), stage.data.train
    console.note(f"counting runs of up to {config.model.ngram_order} of {len(text):,} tokens; run {path}")
    log.rewind(-1)
    started = time.perf_counter()
    with console.working("counting runs of tokens"):
        model = interruptible(lambda: NGram.counted(text.read(0, len(text)), config.model)).to(device)
    console.note(f"{model.parameter_count:,} parameters")
    _say_other_programs(config.model, console)
    state.step, state.tokens, state.train_seconds = 1, len(text), time.perf_counter() - started
    log.append("train", state.step, {"tokens": state.tokens, "train_seconds": state.train_seconds})
    callbacks.Validate(
        lambda: stage.evaluate(model, device, whole=False).to_json(), stage.criterion, log, config
    ).run(state)
    store.save(
        model, stage.tokenizer, TrainingFiles({}, state.to_json()), state.step, state.step, stage.metadata
    )
    score, sample = stage.evaluate(model, device, whole=True), stage.write(model, device)
    run = Run(path, config, state, model.parameter_count, score, sample)
    write_report(path, run.to_json(), (), [])
    return run


def _restore(
    path: Path, config: Config, stage: Stage, console: Console
) -> tuple[TokenModel, torch.optim.Optimizer, TrainingState]:
    """Model, optimiser and counters from the last good checkpoint, or fresh ones before the first."""
    store, device = CheckpointStore(path), torch.device(config.runtime.device)
    step, problems = store.last_good()
    if step is None:
        if problems:
            raise CheckpointError(
                f"{path}: no usable checkpoint: {'; '.join(problems)}; "
                f"delete {store.folder} to begin again from step 0"
            )
        fresh = make_model(
            config.model, stage.metadata, config.precision.attention, config.training.recompute
        )
        model = fresh.to(device)
        return model, make_run_optimizer(model, config), TrainingState()
    for problem in problems:
        console.warn(f"{problem}; going on from {store.path(step).name}")
    folder = store.path(step)
    model = load_model(folder, device, config.precision.attention, config.training.recompute).model
    optimizer = make_run_optimizer(model, config)
    files = load_training(folder)
    load_optimizer_tensors(optimizer, model, files.optimizer)
    exchange(optimizer)
    state = TrainingState.from_json(files.state)
    if state.stop_reason in (callbacks.StopOnSignal.REASON, callbacks.TimeLimit.REASON):
        state.stop_reason = ""
    return model, optimizer, state


def _say_other_programs(model: ModelConfig, console: Console) -> None:
    nearest, differing = presets.published_architecture(model)
    if differing:
        console.note(
            f"this model will not open in other programs: it is nearest to {nearest}, but for {', '.join(differing)}"
        )


def _say_plan(
    path: Path, config: Config, stage: Stage, model: TokenModel, state: TrainingState, console: Console
) -> None:
    console.note(stage.describe())
    trained = trainable_parameters(model)
    part = "" if trained == model.parameter_count else f", {trained:,} of them trained"
    console.note(
        f"{model.parameter_count:,} parameters{part}; {config.training.steps:,} steps; {config.precision.dtype} on "
        f"{config.runtime.device}, {config.runtime.threads} threads; run {path}"
    )
    _say_other_programs(config.model, console)
    if config.runtime.determinism is Determinism.strict:
        console.note(
            "strict determinism: operations that do not repeat bit for bit are refused; on a GPU the steps "
            "are slower, without cuDNN's search for the fastest kernel, and cuBLAS holds 32 MiB a stream"
        )
    if config.runtime.device == "cpu" and (problem := runtime.overload(config.runtime.threads)):
        console.warn(problem)
    if state.step:
        console.note(f"going on after step {state.step:,}")
