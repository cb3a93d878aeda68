"""Kinds of examples in a task file, one JSON object per line, and their metrics.

========================
=====================================================================================
kind                      fields of a line
========================
=====================================================================================
multiple choice           ``context``, ``choices`` (a list of texts), ``answer`` (index of the correct one,
from 0)
schema, cloze             ``text`` with one ``_`` in it, ``choices``, ``answer``
last word                 ``passage``, whose last word is predicted
classification            ``prompt``, ``label``; optionally ``labels``, if some do not occur in the file
score                     ``prompt``, ``choices`` (numbers as texts), ``score``
generation                ``prompt``, ``references`` (a text, or a list of several)
========================
=====================================================================================

A line may also have an ``id``. A space is inserted between prompt and answer if neither side has one.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from wholegpt.errors import DataError
from wholegpt.evaluation.likelihood import Likelihood
from wholegpt.metrics import (
    ROUGE,
    Estimate,
    bleu,
    bleu_counts,
    bootstrap,
    bootstrap_counts,
    bootstrap_ratio,
    confusion_matrix,
    f1,
    f1_macro,
    matthews_correlation,
    pearson_correlation,
    perplexity,
    proportion,
    rouge,
    spearman_correlation,
)

BLANK = "_"
Record = dict[str, Any]
"""The result of one example. ``means`` of a kind maps metrics to the fields that they average, ``needs``
lists the modules that its metrics require.
"""


@dataclass(frozen=True)
class Choice:
    """Multiple choice: the continuation c of least −ln p(c | context), as a sum, or per token or byte."""

    kind: ClassVar[str] = "multiple choice"
    needs: ClassVar[tuple[str, ...]] = ()
    means: ClassVar[Mapping[str, str]] = {
        "accuracy": "correct_sum",
        "accuracy_per_token": "correct_per_token",
        "accuracy_per_byte": "correct_per_byte",
    }
    context: str
    choices: tuple[str, ...]
    answer: int

    def __post_init__(self) -> None:
        """Raise ``ValueError`` if the answer is not a valid index."""
        _check_answer(self.choices, self.answer)

    def pairs(self) -> list[tuple[str, str]]:
        """Return context and continuation, for each choice."""
        return [(self.context, spaced(self.context, choice)) for choice in self.choices]

    def solved(self) -> str:
        """Return the example with its answer, for few-shot prompts."""
        return self.context + spaced(self.context, self.choices[self.answer])

    def record(self, likelihoods: Sequence[Likelihood]) -> Record:
        """Return the model's choice by each of the three scores."""
        nats = [one.nats for one in likelihoods]
        by = {
            "sum": nats,
            "per_token": [one.nats / max(1, one.tokens) for one in likelihoods],
            "per_byte": [
                one.nats / (len(choice.encode()) * one.share)
                for one, choice in zip(likelihoods, self.choices, strict=True)
            ],
        }
        chosen = {name: int(np.argmin(values)) for name, values in by.items()}
        right = {f"correct_{name}": index == self.answer for name, index in chosen.items()}
        return {"answer": self.answer, "nats": nats, **{f"chosen_{n}": i for n, i in chosen.items()}, **right}

    @staticmethod
    def metrics(records: Sequence[Record]) -> dict[str, Estimate]:
        """Return the accuracy by each of the three scores."""
        return means_of(records, Choice.means)


@dataclass(frozen=True)
class Cloze:
    """Fill in the blank of a text, by the likelihood of the whole text or of the part after the blank.

    The latter is partial scoring (Trinh and Le 2018): it ignores how likely the choice itself is.
    """

    kind: ClassVar[str] = "cloze"
    needs: ClassVar[tuple[str, ...]] = ()
    means: ClassVar[Mapping[str, str]] = {
        "accuracy_full": "correct_full",
        "accuracy_partial": "correct_partial",
    }
    text: str
    choices: tuple[str, ...]
    answer: int

    def __post_init__(self) -> None:
        """Raise ``ValueError`` if the answer is not a valid index, or if there is not exactly one blank with
        text after it.
        """
        _check_answer(self.choices, self.answer)
        if self.text.count(BLANK) != 1:
            raise ValueError(f"text holds {self.text.count(BLANK)} times '{BLANK}'; expected one blank")
        if not self.text.partition(BLANK)[2].strip():
            raise ValueError("nothing follows the blank; give such an example as context, choices and answer")

    def pairs(self) -> list[tuple[str, str]]:
        """Return for each choice the whole text after nothing, and the end of the text after the rest."""
        before, _, after = self.text.partition(BLANK)
        return [
            pair
            for choice in self.choices
            for pair in (("", before + choice + after), (before + choice, after))
        ]

    def solved(self) -> str:
        """Return the text with the correct choice."""
        return self.text.replace(BLANK, self.choices[self.answer])

    def record(self, likelihoods: Sequence[Likelihood]) -> Record:
        """Return the model's choice by each of the two scores."""
        full, partial = ([one.nats for one in likelihoods[index::2]] for index in (0, 1))
        chosen_full, chosen_partial = int(np.argmin(full)), int(np.argmin(partial))
        return {
            "answer": self.answer,
            "nats_full": full,
            "nats_partial": partial,
            "chosen_full": chosen_full,
            "chosen_partial": chosen_partial,
            "correct_full": chosen_full == self.answer,
            "correct_partial": chosen_partial == self.answer,
        }

    @staticmethod
    def metrics(records: Sequence[Record]) -> dict[str, Estimate]:
        """Return the accuracy by each of the two scores."""
        return means_of(records, Cloze.means)


@dataclass(frozen=True)
class LastWord:
    """The last word w of a passage (Paperno et al. 2016): correct if each of its tokens is the most likely
    one.

    Its perplexity is exp of the mean of −ln p(w | passage) over the examples, in nats per word.
    """

    kind: ClassVar[str] = "last word"
    needs: ClassVar[tuple[str, ...]] = ()
    means: ClassVar[Mapping[str, str]] = {"accuracy": "correct", "nats_per_word": "nats"}
    passage: str

    def __post_init__(self) -> None:
        """Raise ``ValueError`` for a passage of one word."""
        if len(self.passage.split()) < 2:
            raise ValueError("passage has fewer than two words; the last one is predicted from the others")

    def pairs(self) -> list[tuple[str, str]]:
        """Return all but the last word, and the last word."""
        whole = self.passage.rstrip()
        before = whole.rsplit(maxsplit=1)[0]
        return [(before, whole[len(before) :])]

    def solved(self) -> str:
        """Return the passage."""
        return self.passage

    def record(self, likelihoods: Sequence[Likelihood]) -> Record:
        """Return the word's nats, and whether all its tokens were the most likely ones."""
        (one,) = likelihoods
        return {"nats": one.nats, "correct": one.greedy}

    @staticmethod
    def metrics(records: Sequence[Record]) -> dict[str, Estimate]:
        """Return the accuracy, the word's mean nats, and exp of these, its perplexity."""
        means = means_of(records, LastWord.means)
        nats = means["nats_per_word"]
        return {**means, "perplexity_per_word": Estimate(*map(perplexity, (nats.value, nats.low, nats.high)))}


@dataclass(frozen=True)
class Classification:
    """The label l that follows a prompt: that of least −ln p(l | prompt) of all labels."""

    kind: ClassVar[str] = "classification"
    needs: ClassVar[tuple[str, ...]] = ()
    means: ClassVar[Mapping[str, str]] = {"accuracy": "correct"}
    prompt: str
    label: str
    labels: tuple[str, ...] = ()
    """All labels; by default those in the file."""

    def __post_init__(self) -> None:
        """Raise ``ValueError`` for labels that are empty or repeated."""
        if not self.label.strip():
            raise ValueError("label is empty")
        if self.labels:
            _check_texts("labels", self.labels)

    @staticmethod
    def complete(examples: "list[Classification]") -> "list[Classification]":
        """Return the examples with all labels that occur in any of them."""
        found = tuple(sorted({label.strip() for one in examples for label in (*one.labels, one.label)}))
        if len(found) < 2:
            raise DataError(
                f"all examples have the label {examples[0].label!r}; classification needs at least two labels"
            )
        return [dataclasses.replace(one, label=one.label.strip(), labels=found) for one in examples]

    def pairs(self) -> list[tuple[str, str]]:
        """Return the prompt with each label."""
        return [(self.prompt, spaced(self.prompt, label)) for label in self.labels]

    def solved(self) -> str:
        """Return the prompt with its label."""
        return self.prompt + spaced(self.prompt, self.label)

    def record(self, likelihoods: Sequence[Likelihood]) -> Record:
        """Return the predicted label, and the probability of each label."""
        nats = np.array([one.nats for one in likelihoods])
        chosen = self.labels[int(nats.argmin())]
        return {
            "label": self.label,
            "chosen": chosen,
            "correct": chosen == self.label,
            "probabilities": dict(zip(self.labels, _shares(nats), strict=True)),
        }

    @staticmethod
    def metrics(records: Sequence[Record]) -> dict[str, Estimate]:
        """Return accuracy, F1 (macro; for two labels also that of the second in order) and Matthews
        correlation.
        """
        labels = list(records[0]["probabilities"])
        truth, chosen = (
            np.array([labels.index(record[name]) for record in records]) for name in ("label", "chosen")
        )
        confusion = confusion_matrix(truth, chosen, len(labels))
        figures: dict[str, Callable[[np.ndarray], np.ndarray]] = {
            "f1_macro": f1_macro,
            "matthews_correlation": matthews_correlation,
        }
        if len(labels) == 2:
            figures["f1"] = lambda counts: np.nan_to_num(f1(counts)[..., 1])
        resampled = {name: bootstrap_counts(confusion, figure) for name, figure in figures.items()}
        return {**means_of(records, Classification.means), **resampled}


@dataclass(frozen=True)
class Score:
    """The number that follows a prompt: Σ c·p(c) / Σ p(c) over the choices c with the model's probabilities
    p(c).
    """

    kind: ClassVar[str] = "score"
    needs: ClassVar[tuple[str, ...]] = ("scipy",)
    means: ClassVar[Mapping[str, str]] = {"squared_error": "squared_error"}
    prompt: str
    choices: tuple[str, ...]
    score: float

    def __post_init__(self) -> None:
        """Raise ``ValueError`` for choices that are not numbers."""
        _check_texts("choices", self.choices)
        for choice in self.choices:
            try:
                finite = math.isfinite(float(choice))
            except ValueError:
                finite = False
            if not finite:
                raise ValueError(f"choices holds {choice!r}, which is not a number")
        if not math.isfinite(self.score):
            raise ValueError(f"score is {self.score}; expected a finite number")

    def pairs(self) -> list[tuple[str, str]]:
        """Return the prompt with each number."""
        return [(self.prompt, spaced(self.prompt, choice)) for choice in self.choices]

    def solved(self) -> str:
        """Return the prompt with the choice nearest to its score."""
        nearest = min(self.choices, key=lambda choice: abs(float(choice) - self.score))
        return self.prompt + spaced(self.prompt, nearest)

    def record(self, likelihoods: Sequence[Likelihood]) -> Record:
        """Return the model's expected score."""
        shares = _shares(np.array([one.nats for one in likelihoods]))
        expected = sum(float(c) * share for c, share in zip(self.choices, shares, strict=True))
        return {"score": self.score, "expected": expected, "squared_error": (expected - self.score) ** 2}

    @staticmethod
    def metrics(records: Sequence[Record]) -> dict[str, Estimate]:
        """Return Pearson's and Spearman's correlation of scores and expected scores, and the mean squared
        error.
        """
        truth, expected = _column(records, "score"), _column(records, "expected")
        figures = {"pearson_correlation": pearson_correlation, "spearman_correlation": spearman_correlation}
        correlations = {
            name: bootstrap(
                len(records),
                lambda rows, figure=figure: figure(truth[rows].tolist(), expected[rows].tolist()),
            )
            for name, figure in figures.items()
        }
        return {**correlations, **means_of(records, Score.means)}


@dataclass(frozen=True)
class Generation:
    """A text generated after a prompt, compared with one or more references."""

    kind: ClassVar[str] = "generation"
    needs: ClassVar[tuple[str, ...]] = ("sacrebleu", "rouge_score")
    means: ClassVar[Mapping[str, str]] = {**{name: name for name in ROUGE}, "empty": "empty"}
    prompt: str
    references: tuple[str, ...] | str

    def __post_init__(self) -> None:
        """Raise ``ValueError`` if there is no reference."""
        if not self.all_references:
            raise ValueError("references is empty; expected at least one text")

    @property
    def all_references(self) -> tuple[str, ...]:
        """Return the references as a tuple."""
        return (self.references,) if isinstance(self.references, str) else self.references

    def solved(self) -> str:
        """Return the prompt with its first reference."""
        return self.prompt + spaced(self.prompt, self.all_references[0])

    def generated_record(self, text: str) -> Record:
        """Return the generated text, its ROUGE, and the counts for its BLEU."""
        counts = bleu_counts(text, self.all_references).astype(int).tolist()
        scores = rouge(text, self.all_references)
        return {"generated": text, "empty": not text, **scores, "bleu_counts": counts}

    @staticmethod
    def metrics(records: Sequence[Record]) -> dict[str, Estimate]:
        """Return corpus BLEU (0 to 100), mean ROUGE-1, ROUGE-2 and ROUGE-L F-measures (0 to 1), and share of
        empty texts.
        """
        counts = np.array([record["bleu_counts"] for record in records], dtype=np.float64)
        return {
            "bleu": bootstrap(len(records), lambda rows: bleu(counts[rows])),
            **means_of(records, Generation.means),
        }


Example = Choice | Cloze | LastWord | Classification | Score | Generation
KINDS: tuple[type[Example], ...] = (Choice, Cloze, LastWord, Classification, Score, Generation)


def spaced(before: str, after: str) -> str:
    """Return ``after``, with a space before it if neither side has one."""
    return after if not before or before[-1].isspace() or after[:1].isspace() else " " + after


def _check_answer(choices: tuple[str, ...], answer: int) -> None:
    _check_texts("choices", choices)
    if not 0 <= answer < len(choices):
        raise ValueError(f"answer is {answer}; expected an index from 0 to {len(choices) - 1}")


def _check_texts(name: str, texts: tuple[str, ...]) -> None:
    """Raise ``ValueError`` for texts that are empty or repeated."""
    if len(texts) < 2:
        raise ValueError(f"{name} has {len(texts)} entries; expected at least two")
    stripped = [text.strip() for text in texts]
    if "" in stripped:
        raise ValueError(f"{name} holds an empty text")
    twice = next((text for i, text in enumerate(stripped) if text in stripped[:i]), None)
    if twice is not None:
        raise ValueError(f"{name} holds {twice!r} twice")


def _shares(nats: np.ndarray) -> list[float]:
    """Return probabilities proportional to exp(−nats)."""
    weights = np.exp(nats.min() - nats)
    return (weights / weights.sum()).tolist()


def _column(records: Sequence[Record], name: str) -> np.ndarray:
    return np.array([record[name] for record in records], dtype=np.float64)


def means_of(records: Sequence[Record], columns: Mapping[str, str]) -> dict[str, Estimate]:
    """Return the means of columns of the ``records``, each with its interval, which is exact for Booleans."""
    means: dict[str, Estimate] = {}
    for name, column in columns.items():
        values = np.array([record[column] for record in records])
        if values.dtype == bool:
            means[name] = proportion(int(values.sum()), len(values))
        else:
            means[name] = bootstrap_ratio(values.astype(np.float64), np.ones(len(values)))
    return means
