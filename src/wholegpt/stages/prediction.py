"""Predictions of a model with a head, and their evaluation.

Shapes: N examples, O outputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from wholegpt.console import Console
from wholegpt.data.examples.batches import collate
from wholegpt.data.examples.packing import batches_of
from wholegpt.data.examples.tasks import EncodedExample, Task, TaskExample, encode_example
from wholegpt.evaluation.examples import Classification, Record, Score, means_of
from wholegpt.evaluation.perplexity import check_not_nan
from wholegpt.evaluation.task import TaskScore
from wholegpt.model import TaskModel
from wholegpt.runtime import compute_in
from wholegpt.settings.choices import Dtype, TaskKind
from wholegpt.stages.task_objective import is_summed
from wholegpt.tokenizers import Tokenizer

TOKENS_AT_ONCE = 16_384
MEANS = {"accuracy": "correct", "nats_per_example": "nats"}


@dataclass(frozen=True)
class Prediction:
    """The prediction for one example."""

    texts: tuple[str, ...]
    """The input: one text, or two; for choices the context and the answers."""
    label: str | float
    """The most likely label or answer, or the score."""
    probabilities: dict[str, float]
    """Of each label or answer; empty for a score."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values; a single text is called ``text``."""
        texts = {"text": self.texts[0]} if len(self.texts) == 1 else {"texts": list(self.texts)}
        if isinstance(self.label, float):
            return {**texts, "score": self.label}
        return {**texts, "label": self.label, "probabilities": self.probabilities}


@torch.inference_mode()
def outputs_of(
    model: TaskModel, examples: Sequence[EncodedExample], task: Task, dtype: Dtype, console: Console
) -> Float[np.ndarray, "N O"]:
    """Return ln p of each class or answer, or the scores. Other examples in the batch change only the rounding."""
    device = model.device
    rows: dict[int, np.ndarray] = {}
    tokens = [len(one.sequences) * max(map(len, one.sequences)) for one in examples]
    with console.progress("predicting", len(examples)) as progress:
        for chunk in batches_of(tokens, TOKENS_AT_ONCE):
            batch = collate([examples[i] for i in chunk], [0] * len(chunk)).to(device)
            with compute_in(dtype, device):
                _, outputs = model.task_outputs(
                    batch.token_ids, batch.last, batch.second, is_summed(task.kind)
                )
            precise = outputs.float().cpu()
            known = precise if task.scores else precise.log_softmax(dim=1)
            rows |= zip(chunk, known.double().numpy(), strict=True)
            progress.advance(len(chunk))
    found = np.stack([rows[i] for i in range(len(examples))])
    return found * task.standard_deviation + task.mean if task.scores else found


def predict(
    model: TaskModel,
    tokenizer: Tokenizer,
    task: Task,
    parts: Sequence[Sequence[Sequence[str]]],
    dtype: Dtype,
    console: Console,
) -> list[Prediction]:
    """Predict each example, given by the texts of its sequences."""
    examples = [encode_example(one, tokenizer, model.context_length) for one in parts]
    if cut := sum(one.cut > 0 for one in examples):
        console.warn(
            f"{cut:,} of {len(examples):,} examples are longer than the model's context of "
            f"{model.context_length:,} tokens; the ends of their longest texts were cut off"
        )
    outputs = outputs_of(model, examples, task, dtype, console)
    check_not_nan(outputs, "outputs")
    return [_prediction(task, one, row) for one, row in zip(parts, outputs, strict=True)]


def evaluate_head(
    model: TaskModel,
    tokenizer: Tokenizer,
    task: Task,
    examples: Sequence[TaskExample],
    dtype: Dtype,
    console: Console,
) -> TaskScore:
    """Evaluate a model with a head on examples."""
    encoded = [encode_example(one.parts, tokenizer, model.context_length) for one in examples]
    outputs = outputs_of(model, encoded, task, dtype, console)
    check_not_nan(outputs, "outputs")
    with console.working("resampling for the intervals"):
        return score_predictions(task, examples, encoded, outputs)


def score_predictions(
    task: Task,
    examples: Sequence[TaskExample],
    encoded: Sequence[EncodedExample],
    outputs: Float[np.ndarray, "N O"],
) -> TaskScore:
    """Compute the metrics of ``outputs`` with confidence intervals, and a record of each example."""
    records = [
        {"line": line, "truncated": one.cut > 0, **_record(task, example, row)}
        for line, (example, one, row) in enumerate(zip(examples, encoded, outputs, strict=True), 1)
    ]
    truncated = sum(one.cut > 0 for one in encoded)
    if task.scores:
        metrics, means = Score.metrics(records), dict(Score.means)
    else:
        metrics, means = means_of(records, MEANS), MEANS
        if task.labels:
            metrics = {**Classification.metrics(records), **metrics}
    left_out = "the ends of their longest texts"
    return TaskScore(task.kind, len(records), 0, metrics, means, truncated, records, left_out)


def _texts(task: Task, parts: Sequence[Sequence[str]]) -> tuple[str, ...]:
    if task.kind is TaskKind.choice:
        return (parts[0][0], *(answer for _, answer in parts))
    return tuple(parts[0])


def _names(task: Task, texts: Sequence[str]) -> Sequence[str]:
    """Return the name of each output: a label, or one of the answers after the context."""
    return task.labels or texts[1:]


def _prediction(task: Task, parts: Sequence[Sequence[str]], row: Float[np.ndarray, " O"]) -> Prediction:
    texts = _texts(task, parts)
    if task.scores:
        return Prediction(texts, float(row[0]), {})
    names = _names(task, texts)
    shares = dict(zip(names, np.exp(row).tolist(), strict=True))
    return Prediction(texts, names[int(row.argmax())], shares)


def _record(task: Task, example: TaskExample, row: Float[np.ndarray, " O"]) -> Record:
    """Return the record of an example: its texts, label and prediction."""
    known = {"texts": list(_texts(task, example.parts))}
    if task.scores:
        score, expected = float(example.target), float(row[0])
        return {**known, "score": score, "expected": expected, "squared_error": (expected - score) ** 2}
    right, chosen = int(task.target(example)), int(row.argmax())
    names = _names(task, known["texts"])
    shares = np.exp(row).tolist()
    return {
        **known,
        "label": names[right],
        "chosen": names[chosen],
        "correct": chosen == right,
        "nats": -float(row[right]),
        "probabilities": dict(zip(names, shares, strict=True)) if task.labels else shares,
    }
