"""Fine-tuning with a head for a task: classification, entailment, similarity, multiple choice."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch

from wholegpt.checkpoint import ModelMetadata, listed
from wholegpt.console import QUIET, Console
from wholegpt.data.examples.batches import TaskLoader
from wholegpt.data.examples.data import TaskData
from wholegpt.data.examples.tasks import SPECIAL_TOKENS, EncodedExample, TaskExample, encode_example
from wholegpt.errors import ConfigError
from wholegpt.evaluation import TaskScore
from wholegpt.losses import balanced_weights
from wholegpt.metrics import pearson_correlation
from wholegpt.model import TaskModel, TokenModel
from wholegpt.model.heads import TaskTransformer
from wholegpt.settings.choices import Architecture, ClassWeights, TaskKind
from wholegpt.settings.schema import Config
from wholegpt.stages.definition import NewRun, NextStep, RunContents, RunSetup, SetupRequest, StageDefinition
from wholegpt.stages.initialization import fine_tuned
from wholegpt.stages.prediction import MEANS, outputs_of, score_predictions
from wholegpt.stages.task_objective import TaskObjective
from wholegpt.tokenizers import Tokenizer
from wholegpt.training.callbacks import Unfreeze
from wholegpt.training.events import Callback
from wholegpt.training.stage import Criterion, QuickScore, Stage
from wholegpt.training.state import TrainingState

EXAMPLES = {TaskKind.classification: '"A TEXT"', TaskKind.choice: '"A CONTEXT" "AN ANSWER" "ANOTHER"'}
"""The arguments of `predict` for one example, if they are not two texts."""
ACCURACY = Criterion("accuracy", higher_is_better=True, label="validation accuracy", tie="nats_per_example")
CORRELATION = Criterion("pearson_correlation", higher_is_better=True, label="validation correlation")


class TaskTuning(Stage):
    """A head over the last token of each example (``wholegpt.data.examples.tasks``), trained by E11."""

    generates = False

    def __init__(self, config: Config, data: TaskData, tokenizer: Tokenizer, metadata: ModelMetadata) -> None:
        """``config`` is resolved; ``tokenizer`` has the task's special tokens."""
        self.criterion = CORRELATION if data.task.scores else ACCURACY
        task, settings = data.task, config.finetuning
        targets = [task.target(example) for example in data.train]
        weights = None
        if settings.class_weights is ClassWeights.balanced:
            counts = torch.tensor(targets).bincount(minlength=task.outputs)
            weights = balanced_weights(counts).to(config.runtime.device)
        objective = TaskObjective(task.kind, settings.language_modeling, task.scores, weights)
        super().__init__(config, tokenizer, metadata, objective)
        self.data = data
        self.train, self.validation = self._encoded(data.train), self._encoded(data.validation)
        self.batches = TaskLoader(self.train, targets, config.training.batch_size, config.runtime.seed)

    def evaluate(
        self, model: TokenModel, device: torch.device, whole: bool, console: Console = QUIET
    ) -> TaskScore | QuickScore:
        """Return the figures of the held-out examples, with confidence intervals if ``whole``."""
        assert isinstance(model, TaskModel)
        task, examples = self.data.task, self.data.validation
        outputs = outputs_of(model, self.validation, task, self.config.precision.dtype, console)
        if whole:
            return score_predictions(task, examples, self.validation, outputs)
        if task.scores:
            scores = [float(example.target) for example in examples]
            predicted = outputs[:, 0].tolist()
            error = float(np.mean((outputs[:, 0] - scores) ** 2))
            correlation = pearson_correlation(scores, predicted)
            return QuickScore({CORRELATION.metric: correlation, "squared_error": error}, len(examples))
        right = np.array([task.target(example) for example in examples])
        correct = float((outputs.argmax(axis=1) == right).mean())
        nats = -float(outputs[np.arange(len(right)), right].mean())
        return QuickScore(dict(zip(MEANS, (correct, nats), strict=True)), len(examples))

    def callbacks(self, model: TokenModel, state: TrainingState) -> Sequence[Callback]:
        """Return the gradual unfreezing, if that is asked for."""
        every = self.config.finetuning.unfreeze_every
        return [Unfreeze(cast(TaskTransformer, model), every, state.step)] if every else []

    def describe(self) -> str:
        """Return the number of examples, their labels and columns, and the number of epochs."""
        task, training = self.data.task, self.config.training
        epochs = training.steps * training.batch_size / len(self.train)
        what = (
            f"labels {listed(list(task.labels))}" if task.labels else "scores" if task.scores else "answers"
        )
        columns = [*task.columns.texts, *task.columns.answers, task.columns.target]
        cut = sum(one.cut > 0 for one in (*self.train, *self.validation))
        too_long = (
            f"; {cut:,} lose the ends of their longest texts, beyond the context of "
            f"{self.config.model.context_length:,} tokens"
            if cut
            else ""
        )
        learned = {example.parts for example in self.data.train}
        copied = sum(example.parts in learned for example in self.data.validation)
        known = (
            f" ({copied:,} of them are training examples, too, so the metrics are too optimistic)"
            if copied
            else ""
        )
        return (
            f"{task.kind}: {len(self.train):,} training examples ({epochs:.1f} epochs), {len(self.validation):,} "
            f"held out{known}; {what}; columns {', '.join(columns)}{too_long}"
        )

    def _encoded(self, examples: Sequence[TaskExample]) -> list[EncodedExample]:
        length = self.config.model.context_length
        return [encode_example(one.parts, self.tokenizer, length) for one in examples]


def set_up(request: SetupRequest) -> NewRun:
    """Set up fine-tuning of the parent with a new head."""
    parent, settings = request.parent, request.config.finetuning
    assert parent
    if settings.language_modeling and not parent.loaded.model.predicts_next_token:
        raise ConfigError(
            f"{parent.name}: is an encoder, which does not predict the next token; set "
            "--finetuning.language-modeling 0"
        )
    return NewRun("", lambda folder: _write(request, folder))


def _write(request: SetupRequest, folder: Path) -> RunSetup:
    """Read the examples into ``folder``, and add the task's special tokens and a head to the parent.

    Raises ``DataError`` for examples that do not fit the task, ``ModuleNotFoundError`` if a metric needs a module that
    is not installed.
    """
    config, parent = request.config, request.parent_model
    data = TaskData.read(config, request.console)
    if data.task.scores:
        importlib.import_module("scipy")
        if config.finetuning.class_weights is ClassWeights.balanced:
            raise ConfigError("finetuning.class_weights is for labels, and these examples have scores")
    data_hash = data.save(folder / "data")
    tokenizer = parent.tokenizer.with_special_tokens(SPECIAL_TOKENS)
    lora = config.lora if config.lora.rank else None
    metadata = ModelMetadata(task=data.task, lora=lora, new_tokens=len(SPECIAL_TOKENS))
    return fine_tuned(config, parent, tokenizer, metadata, len(data.train), data_hash)


def open_stage(run: RunContents) -> TaskTuning:
    """Open fine-tuning over the examples of a run."""
    return TaskTuning(run.config, TaskData.open(run.examples()), run.tokenizer(), run.metadata())


def next_steps(config: Config) -> list[NextStep]:
    """Return the uses of a model with a head."""
    texts = EXAMPLES.get(config.finetuning.task, '"A TEXT" "ANOTHER"')
    return [
        NextStep(f"{{program}} predict {{run}} {texts}", "predict an example"),
        NextStep("{program} evaluate {run} TEST.csv", "evaluate it on other examples"),
    ]


STAGE = StageDefinition(
    name="classification",
    tasks=(TaskKind.classification, TaskKind.entailment, TaskKind.similarity, TaskKind.choice),
    architectures=(),
    parents=(Architecture.transformer, Architecture.encoder),
    set_up=set_up,
    open=open_stage,
    next_steps=next_steps,
    recipe="finetune",
)
