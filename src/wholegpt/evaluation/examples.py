"""The kinds of examples that a task file holds, one JSON object a line: what is asked, and what an answer is worth.

========================  =====================================================================================
kind                      fields of a line
========================  =====================================================================================
multiple choice           ``context``, ``choices`` (a list of texts), ``answer`` (index of the right one, from 0)
schema, cloze             ``text`` with one ``_`` in it, ``choices``, ``answer``
last word                 ``passage``, whose last word is asked
classification            ``prompt``, ``label``; perhaps ``labels``, where not every one occurs in the file
score                     ``prompt``, ``choices`` (numbers as texts), ``score``
generation                ``prompt``, ``references`` (a text, or a list of several)
========================  =====================================================================================

A line may have an ``id`` besides. A space is put between what is asked and the answer where neither side has one.
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
"""What became of one example. ``means`` of a kind tells which of its fields average to which figure, ``needs`` which
modules its figures take."""


@dataclass(frozen=True)
class Choice:
    """Which of several continuations c is right: that of least −ln p(c | context), as a sum, or per token or byte."""

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
        """Refuse an answer that is no index."""
        _check_answer(self.choices, self.answer)

    def pairs(self) -> list[tuple[str, str]]:
        """Context and continuation, for each that is to be scored."""
        return [(self.context, spaced(self.context, choice)) for choice in self.choices]

    def solved(self) -> str:
        """The example with its answer, as one of the shots before another."""
        return self.context + spaced(self.context, self.choices[self.answer])

    def record(self, likelihoods: Sequence[Likelihood]) -> Record:
        """What the model chooses by each of the three scores."""
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
        """Accuracy by each of the three scores."""
        return means_of(records, Choice.means)


@dataclass(frozen=True)
class Cloze:
    """What belongs in the blank of a text, by the likelihood of the whole text or of what follows the blank.

    The second is partial scoring (Trinh and Le 2018): it leaves out how likely the choice itself is.
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
        """Refuse an answer that is no index, and a text without exactly one blank and something behind it."""
        _check_answer(self.choices, self.answer)
        if self.text.count(BLANK) != 1:
            raise ValueError(f"text holds {self.text.count(BLANK)} times '{BLANK}'; expected one blank")
        if not self.text.partition(BLANK)[2].strip():
            raise ValueError("nothing follows the blank; give such an example as context, choices and answer")

    def pairs(self) -> list[tuple[str, str]]:
        """The whole text after nothing, and the end of it after the rest, for each choice."""
        before, _, after = self.text.partition(BLANK)
        return [
            pair
            for choice in self.choices
            for pair in (("", before + choice + after), (before + choice, after))
        ]

    def solved(self) -> str:
        """The text with the right choice in it."""
        return self.text.replace(BLANK, self.choices[self.answer])

    def record(self, likelihoods: Sequence[Likelihood]) -> Record:
        """What the model chooses by each of the two scores."""
        full, partial = ([one.nats for one in likelihoods[place::2]] for place in (0, 1))
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
        """Accuracy by each of the two scores."""
        return means_of(records, Cloze.means)


@dataclass(frozen=True)
class LastWord:
    """The last word w of a passage (Paperno et al. 2016): right where each of its tokens is the likeliest.

    Its perplexity is exp of the mean of −ln p(w | passage) over the examples, in nats a word.
    """

    kind: ClassVar[str] = "last word"
    needs: ClassVar[tuple[str, ...]] = ()
    means: ClassVar[Mapping[str, str]] = {"accuracy": "correct", "nats_per_word": "nats"}
    passage: str

    def __post_init__(self) -> None:
        """Refuse a passage of one word."""
        if len(self.passage.split()) < 2:
            raise ValueError("passage has fewer than two words; the last is asked, after the others")

    def pairs(self) -> list[tuple[str, str]]:
        """All but the last word, and it."""
        whole = self.passage.rstrip()
        before = whole.rsplit(maxsplit=1)[0]
        return [(before, whole[len(before) :])]

    def solved(self) -> str:
        """The passage."""
        return self.passage

    def record(self, likelihoods: Sequence[Likelihood]) -> Record:
        """How likely the word was, and whether it was the likeliest."""
        (one,) = likelihoods
        return {"nats": one.nats, "correct": one.greedy}

    @staticmethod
    def metrics(records: Sequence[Record]) -> dict[str, Estimate]:
        """Accuracy, and the word's mean nats, and exp of that, its perplexity."""
        means = means_of(records, LastWord.means)
        nats = means["nats_per_word"]
        return {**means, "perplexity_per_word": Estimate(*map(perplexity, (nats.value, nats.low, nats.high)))}


@dataclass(frozen=True)
class Classification:
    """Which label l follows a prompt: that of least −ln p(l | prompt) of all labels."""

    kind: ClassVar[str] = "classification"
    needs: ClassVar[tuple[str, ...]] = ()
    means: ClassVar[Mapping[str, str]] = {"accuracy": "correct"}
    prompt: str
    label: str
    labels: tuple[str, ...] = ()
    """All there are; those of the file unless given."""

    def __post_init__(self) -> None:
        """Refuse labels that a model could not choose between."""
        if not self.label.strip():
            raise ValueError("label is empty")
        if self.labels:
            _check_texts("labels", self.labels)

    @staticmethod
    def complete(examples: "list[Classification]") -> "list[Classification]":
        """The examples with the labels that occur in any of them."""
        found = tuple(sorted({label.strip() for one in examples for label in (*one.labels, one.label)}))
        if len(found) < 2:
            raise DataError(
                f"all examples have the label {examples[0].label!r}; a class to choose needs at least two"
            )
        return [dataclasses.replace(one, label=one.label.strip(), labels=found) for one in examples]

    def pairs(self) -> list[tuple[str, str]]:
        """The prompt, and each label."""
        return [(self.prompt, spaced(self.prompt, label)) for label in self.labels]

    def solved(self) -> str:
        """The prompt with its label."""
        return self.prompt + spaced(self.prompt, self.label)

    def record(self, likelihoods: Sequence[Likelihood]) -> Record:
        """The label chosen, and the probability of each among them."""
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
        """Accuracy, F1 (macro; of two labels that of the later in order too), Matthews correlation."""
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
    """Which number follows a prompt: Σ c·p(c) / Σ p(c) over the choices c, p(c) the model's probability of each."""

    kind: ClassVar[str] = "score"
    needs: ClassVar[tuple[str, ...]] = ("scipy",)
    means: ClassVar[Mapping[str, str]] = {"squared_error": "squared_error"}
    prompt: str
    choices: tuple[str, ...]
    score: float

    def __post_init__(self) -> None:
        """Refuse choices that are no numbers."""
        _check_texts("choices", self.choices)
        for choice in self.choices:
            try:
                finite = math.isfinite(float(choice))
            except ValueError:
                finite = False
            if not finite:
                raise ValueError(f"choices holds {choice!r}, which is no number")
        if not math.isfinite(self.score):
            raise ValueError(f"score is {self.score}; expected a finite number")

    def pairs(self) -> list[tuple[str, str]]:
        """The prompt, and each number."""
        return [(self.prompt, spaced(self.prompt, choice)) for choice in self.choices]

    def solved(self) -> str:
        """The prompt with the choice nearest to its score."""
        nearest = min(self.choices, key=lambda choice: abs(float(choice) - self.score))
        return self.prompt + spaced(self.prompt, nearest)

    def record(self, likelihoods: Sequence[Likelihood]) -> Record:
        """The score that the model expects."""
        shares = _shares(np.array([one.nats for one in likelihoods]))
        expected = sum(float(c) * share for c, share in zip(self.choices, shares, strict=True))
        return {"score": self.score, "expected": expected, "squared_error": (expected - self.score) ** 2}

    @staticmethod
    def metrics(records: Sequence[Record]) -> dict[str, Estimate]:
        """Pearson's and Spearman's correlation of the scores with the expected ones, and the mean squared error."""
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
    """A text generated after a prompt, against one or several references."""

    kind: ClassVar[str] = "generation"
    needs: ClassVar[tuple[str, ...]] = ("sacrebleu", "rouge_score")
    means: ClassVar[Mapping[str, str]] = {**{name: name for name in ROUGE}, "empty": "empty"}
    prompt: str
    references: tuple[str, ...] | str

    def __post_init__(self) -> None:
        """Refuse an example without a reference."""
        if not self.all_references:
            raise ValueError("references is empty; expected at least one text")

    @property
    def all_references(self) -> tuple[str, ...]:
        """The references, as several."""
        return (self.references,) if isinstance(self.references, str) else self.references

    def solved(self) -> str:
        """The prompt with its first reference."""
        return self.prompt + spaced(self.prompt, self.all_references[0])

    def generated_record(self, text: str) -> Record:
        """What was generated, its ROUGE, and what its BLEU is made of."""
        counts = bleu_counts(text, self.all_references).astype(int).tolist()
        scores = rouge(text, self.all_references)
        return {"generated": text, "empty": not text, **scores, "bleu_counts": counts}

    @staticmethod
    def metrics(records: Sequence[Record]) -> dict[str, Estimate]:
        """Corpus BLEU (0 to 100), mean ROUGE-1, ROUGE-2 and ROUGE-L F-measures (0 to 1), share of empty texts."""
        counts = np.array([record["bleu_counts"] for record in records], dtype=np.float64)
        return {
            "bleu": bootstrap(len(records), lambda rows: bleu(counts[rows])),
            **means_of(records, Generation.means),
        }


Example = Choice | Cloze | LastWord | Classification | Score | Generation
KINDS: tuple[type[Example], ...] = (Choice, Cloze, LastWord, Classification, Score, Generation)


def spaced(before: str, after: str) -> str:
    """``after``, with a space before it where neither side has one."""
    return after if not before or before[-1].isspace() or after[:1].isspace() else " " + after


def _check_answer(choices: tuple[str, ...], answer: int) -> None:
    _check_texts("choices", choices)
    if not 0 <= answer < len(choices):
        raise ValueError(f"answer is {answer}; expected an index from 0 to {len(choices) - 1}")


def _check_texts(name: str, texts: tuple[str, ...]) -> None:
    """Refuse texts that a model could not choose between."""
    if len(texts) < 2:
        raise ValueError(f"{name} has {len(texts)} entries; expected at least two")
    stripped = [text.strip() for text in texts]
    if "" in stripped:
        raise ValueError(f"{name} holds an empty text")
    twice = next((text for i, text in enumerate(stripped) if text in stripped[:i]), None)
    if twice is not None:
        raise ValueError(f"{name} holds {twice!r} twice")


def _shares(nats: np.ndarray) -> list[float]:
    """Probabilities in proportion to exp(−nats)."""
    weights = np.exp(nats.min() - nats)
    return (weights / weights.sum()).tolist()


def _column(records: Sequence[Record], name: str) -> np.ndarray:
    return np.array([record[name] for record in records], dtype=np.float64)


def means_of(records: Sequence[Record], columns: Mapping[str, str]) -> dict[str, Estimate]:
    """Figures that are the means of columns of the ``records``, each with its interval, exact for truth values."""
    means: dict[str, Estimate] = {}
    for name, column in columns.items():
        values = np.array([record[column] for record in records])
        if values.dtype == bool:
            means[name] = proportion(int(values.sum()), len(values))
        else:
            means[name] = bootstrap_ratio(values.astype(np.float64), np.ones(len(values)))
    return means
