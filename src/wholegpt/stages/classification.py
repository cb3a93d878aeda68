"""Fine-tuning for a task as a stage of training: the examples of a run, its loss, and how good its answers are."""

import importlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from wholegpt.checkpoint import ModelFolder, ModelMetadata, listed
from wholegpt.console import Console
from wholegpt.data.examples.batches import TaskLoader
from wholegpt.data.examples.data import TaskData
from wholegpt.data.examples.tasks import SPECIAL_TOKENS, EncodedExample, TaskExample, encode_example
from wholegpt.errors import ConfigError
from wholegpt.evaluation import TaskScore
from wholegpt.losses import balanced_weights
from wholegpt.metrics import pearson_correlation
from wholegpt.model import TaskModel, TokenModel
from wholegpt.settings.choices import ClassWeights
from wholegpt.settings.schema import Config
from wholegpt.stages.initialization import begin
from wholegpt.stages.prediction import MEANS, outputs_of, score_predictions
from wholegpt.stages.task_objective import TaskObjective
from wholegpt.tokenizers import Tokenizer
from wholegpt.training.objectives import with_router_losses
from wholegpt.training.stage import Begun, Criterion, QuickScore

QUIET = Console(quiet=True)
ACCURACY = Criterion("accuracy", higher_is_better=True, words="validation accuracy", tie="nats_per_example")
CORRELATION = Criterion("pearson_correlation", higher_is_better=True, words="validation correlation")


class TaskTuning:
    """Answers of a head to examples (``wholegpt.data.examples.tasks``), by E11."""

    def __init__(self, config: Config, data: TaskData, tokenizer: Tokenizer, metadata: ModelMetadata) -> None:
        """``config`` is decided; ``tokenizer`` knows the task's special tokens."""
        self.config, self.data, self.tokenizer, self.metadata = config, data, tokenizer, metadata
        self.criterion = CORRELATION if data.task.scores else ACCURACY
        self.train, self.validation = self._encoded(data.train), self._encoded(data.validation)
        task, settings = data.task, config.finetuning
        targets = [task.target(example) for example in data.train]
        weights = None
        if settings.class_weights is ClassWeights.balanced:
            counts = torch.tensor(targets).bincount(minlength=task.outputs)
            weights = balanced_weights(counts).to(config.runtime.device)
        objective = TaskObjective(task.kind, settings.language_modeling, task.scores, weights)
        self.objective = with_router_losses(objective, config)
        self.batches = TaskLoader(self.train, targets, config.training.batch_size, config.runtime.seed)

    def evaluate(self, model: TokenModel, device: torch.device, whole: bool) -> TaskScore | QuickScore:
        """The figures of the held-out examples, with intervals at the end only."""
        assert isinstance(model, TaskModel)
        task, examples = self.data.task, self.data.validation
        outputs = outputs_of(model, self.validation, task, self.config.precision.dtype, QUIET)
        if whole:
            return score_predictions(task, examples, self.validation, outputs)
        if task.scores:
            scores = [float(example.target) for example in examples]
            predicted = outputs[:, 0].tolist()
            error = float(np.mean((outputs[:, 0] - scores) ** 2))
            correlation = pearson_correlation(scores, predicted)
            return QuickScore({CORRELATION.figure: correlation, "squared_error": error})
        right = np.array([task.target(example) for example in examples])
        correct = float((outputs.argmax(axis=1) == right).mean())
        nats = -float(outputs[np.arange(len(right)), right].mean())
        return QuickScore(dict(zip(MEANS, (correct, nats), strict=True)))

    def write(self, model: TokenModel, device: torch.device) -> str:
        """Nothing: its answers are not text."""
        return ""

    def masks(self) -> list[list[tuple[str, bool]]]:
        """None: every token counts."""
        return []

    def describe(self) -> str:
        """How many examples there are, what they are, and how often they are read."""
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
        known = f" ({copied:,} of them are training examples, too: figures are too good)" if copied else ""
        return (
            f"{task.kind}: {len(self.train):,} training examples ({epochs:.1f} passes), {len(self.validation):,} "
            f"held out{known}; {what}; columns {', '.join(columns)}{too_long}"
        )

    def _encoded(self, examples: Sequence[TaskExample]) -> list[EncodedExample]:
        length = self.config.model.context_length
        return [encode_example(one.parts, self.tokenizer, length) for one in examples]


def begin_task(config: Config, parent: ModelFolder, folder: Path, console: Console) -> Begun:
    """Read the examples, keep them in a run's new ``folder``, and put new tokens and a head to the ``parent``.

    Raises ``DataError`` for examples that do not fit the task, ``ModuleNotFoundError`` where a figure needs a module
    that is not installed.
    """
    data = TaskData.read(config, console)
    if data.task.scores:
        importlib.import_module("scipy")
        if config.finetuning.class_weights is ClassWeights.balanced:
            raise ConfigError("finetuning.class_weights is for labels, and these examples have scores")
    fingerprint = data.save(folder / "data")
    tokenizer = parent.tokenizer.with_special_tokens(SPECIAL_TOKENS)
    lora = config.lora if config.lora.rank else None
    metadata = ModelMetadata(task=data.task, lora=lora, new_tokens=len(SPECIAL_TOKENS))
    return begin(config, parent, tokenizer, metadata, len(data.train), fingerprint)
