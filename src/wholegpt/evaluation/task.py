"""Evaluate a model on a file of examples: parsing, few-shot prompts, and metrics with their intervals."""

import dataclasses
import importlib
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch

from wholegpt.console import QUIET, Console
from wholegpt.data.reading.decoding import ReadingReport
from wholegpt.data.reading.file_types import JSON, file_format
from wholegpt.data.reading.files import table_rows
from wholegpt.data.reading.records import LIKELY_FIELDS, conversation_field
from wholegpt.data.reading.tables import LARGEST_TABLE, Reading
from wholegpt.errors import ConfigError, DataError, TokenizerError
from wholegpt.evaluation.examples import KINDS, Classification, Example, Generation, Record
from wholegpt.evaluation.likelihood import Request, score_continuations
from wholegpt.files import is_file
from wholegpt.generation import encode_prompt, generate
from wholegpt.metrics import Estimate
from wholegpt.model.interface import CausalLanguageModel
from wholegpt.settings.choices import Dtype
from wholegpt.settings.schema import DataConfig, GenerationConfig
from wholegpt.settings.serialization import conversion_problem
from wholegpt.tokenizers import Tokenizer

SHOTS_JOINED_BY = "\n\n"
GREEDY_LINE = GenerationConfig(max_tokens=100, temperature=0.0, stop=("\n",))
"""Default generation: greedy, up to the end of the line."""


@dataclass(frozen=True)
class TaskScore:
    """The results of a model on a file of examples."""

    kind: str
    examples: int
    shots: int
    """Number of few-shot examples before each; they are not scored."""
    metrics: dict[str, Estimate]
    means: Mapping[str, str]
    """Metrics that are means over the examples, and the field of the records that each averages."""
    truncated: int
    """Number of examples that exceed the model's context."""
    records: list[Record] = field(repr=False)
    """The result of each example, with its line number."""
    left_out: str = "their beginning"
    """The part of the truncated examples that was dropped."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values, without the records."""
        return {
            "kind": self.kind,
            "examples": self.examples,
            "shots": self.shots,
            "truncated": self.truncated,
            "left_out": self.left_out,
            **{name: estimate.to_json() for name, estimate in self.metrics.items()},
        }


@dataclass(frozen=True)
class Examples:
    """Examples of one kind, by line number."""

    path: Path
    by_line: dict[int, Example]
    ids: dict[int, Any]
    """The ``id`` of each line that has one."""

    @property
    def kind(self) -> type[Example]:
        """Return the kind of the examples."""
        return type(next(iter(self.by_line.values())))


def is_task_file(path: Path, text_field: str = "", encoding: str = "utf-8") -> bool:
    """Return whether the first record of a JSON file is an example; otherwise the file is text, in
    ``text_field``, or conversations.
    """
    if file_format(path) not in JSON or not is_file(path):
        return False
    lenient = DataConfig(encoding=encoding, on_bad_text="replace", on_bad_line="skip")
    try:
        record = next((row.record for row in table_rows(path, lenient, ReadingReport())), None)
    except DataError:  # reading it as text raises the error
        return False
    if not isinstance(record, dict):
        return False
    asks = "answer" in record or "choices" in record
    texts = [text_field] if text_field else LIKELY_FIELDS
    is_text = any(isinstance(record.get(name), str) for name in texts) or bool(conversation_field(record))
    return _kind_of(record) is not None or asks or not is_text


def read_examples(path: Path, reading: Reading | None = None) -> Examples:
    """Read the examples of a JSON file, all of one kind.

    Raises ``DataError`` naming the line, for a field that is missing, unknown or of the wrong type, and for
    an answer that is not a valid index, unless ``reading`` skips such examples.
    """
    if file_format(path) not in JSON:
        raise DataError(f"{path}: is not a file of examples; expected a name ending in {', '.join(JSON)}")
    reading = reading or Reading()
    kind: type[Example] | None = None
    by_line: dict[int, Example] = {}
    ids: dict[int, Any] = {}
    for location, record in table_rows(path, reading.config, reading.report, most_bytes=LARGEST_TABLE):
        where = f"{path}: {location}"
        kind = kind or (_kind_of(record) if isinstance(record, dict) else None)
        try:
            if kind is None:
                known = "; ".join(f"{one.kind}: {', '.join(_fields(one)[0])}" for one in KINDS)
                raise DataError(f"{where}: is not an example; its fields match no kind ({known})")
            example = _example(kind, record, where)
        except DataError as error:
            reading.skip_record(error)
            continue
        number = int(location.rpartition(" ")[2])
        by_line[number] = example
        if "id" in record:
            ids[number] = record["id"]
    if not by_line:
        skipped = f"; skipped {reading.report.skipped_text()}" if reading.report.skipped else ""
        raise DataError(f"{path}: holds no examples{skipped}")
    if kind is Classification:
        complete = Classification.complete(
            [one for one in by_line.values() if isinstance(one, Classification)]
        )
        by_line = dict(zip(by_line, complete, strict=True))
    return Examples(path, by_line, ids)


def _fields(kind: type[Example]) -> tuple[list[str], list[str]]:
    """Return the required fields of a line, and all allowed ones."""
    fields = dataclasses.fields(kind)
    return [f.name for f in fields if f.default is dataclasses.MISSING], [f.name for f in fields]


def _kind_of(record: dict[str, Any]) -> type[Example] | None:
    for kind in KINDS:
        needed, allowed = _fields(kind)
        if set(needed) <= record.keys() <= {*allowed, "id"}:
            return kind
    return None


def _example(kind: type[Example], record: Any, where: str) -> Example:
    needed, allowed = _fields(kind)
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected a JSON object")
    missing = [name for name in needed if name not in record]
    unknown = sorted(record.keys() - {*allowed, "id"})
    if missing or unknown:
        raise DataError(
            f"{where}: "
            + "; ".join([*(f"lacks '{name}'" for name in missing), *(f"has '{n}'" for n in unknown)])
            + f"; a line of a {kind.kind} file has {', '.join(allowed)}"
        )
    try:
        return msgspec.convert({name: value for name, value in record.items() if name != "id"}, kind)
    except (msgspec.ValidationError, ValueError) as error:  # the latter of the example itself
        name, problem = conversion_problem(error)
        raise DataError(f"{where}: {f'{name}: ' if name else ''}{problem}") from None


def few_shot(examples: Examples, shots: int, pool: Examples | None, seed: int) -> tuple[str, Examples]:
    """Return the few-shot prefix of every example, and the examples to score.

    ``shots`` examples are drawn by ``seed`` without replacement from ``pool``, excluding scored examples, or
    else from the file itself, from which they are removed. Raises ``ConfigError`` if there are too few,
    ``DataError`` for a pool of another kind.
    """
    if shots < 0:
        raise ConfigError(f"shots is {shots}; expected 0 or more")
    if pool and not shots:
        raise ConfigError(f"a file of few-shot examples is given ({pool.path}), but shots is 0; set shots")
    if shots == 0:
        return "", examples
    source = pool or examples
    if pool and pool.kind is not examples.kind:
        raise DataError(
            f"{pool.path}: holds {pool.kind.kind} examples, {examples.path} {examples.kind.kind} ones"
        )
    scored = set(examples.by_line.values()) if pool else set()
    candidates = [line for line, one in sorted(source.by_line.items()) if one not in scored]
    if shots >= len(candidates) + bool(pool):
        other = " that are not scored themselves" if pool else ""
        raise ConfigError(
            f"shots is {shots}; {source.path} has {len(candidates)} examples{other} to draw them from"
        )
    drawn = random.Random(seed).sample(candidates, shots)
    before = "".join(source.by_line[line].solved() + SHOTS_JOINED_BY for line in drawn)
    rest = {n: one for n, one in examples.by_line.items() if pool or n not in drawn}
    return before, Examples(examples.path, rest, examples.ids)


def evaluate_task(
    model: CausalLanguageModel,
    tokenizer: Tokenizer,
    examples: Examples,
    device: torch.device,
    dtype: Dtype,
    console: Console,
    *,
    shots: int = 0,
    pool: Examples | None = None,
    seed: int = 1337,
    generation: GenerationConfig | None = None,
) -> TaskScore:
    """Score examples, each after ``shots`` few-shot examples (``few_shot``).

    Examples that exceed the model's context lose their start and are counted; for generation this includes
    the room for the completion. ``generation`` sets how texts are generated; the default is greedy, up to 100
    tokens and the end of the line. Raises ``ConfigError`` for generation settings if nothing is generated,
    and ``ModuleNotFoundError`` before any computation if a metric requires a missing module.
    """
    if generation and examples.kind is not Generation:
        raise ConfigError(
            f"{examples.path}: nothing is generated for {examples.kind.kind} examples; leave out --max-tokens and "
            "--stop (generation)"
        )
    for module in examples.kind.needs:
        importlib.import_module(module)
    before, left = few_shot(examples, shots, pool, seed)
    if examples.kind is Generation:
        settings = generation or GREEDY_LINE
        records, truncated = _generate(model, tokenizer, left, before, settings, device, console)
    else:
        records, truncated = _choose(model, tokenizer, left, before, device, dtype, console)
    kind = examples.kind
    with console.working("resampling for the intervals"):
        metrics = kind.metrics(records)
    return TaskScore(kind.kind, len(records), shots, metrics, kind.means, truncated, records)


def _choose(
    model: CausalLanguageModel,
    tokenizer: Tokenizer,
    examples: Examples,
    before: str,
    device: torch.device,
    dtype: Dtype,
    console: Console,
) -> tuple[list[Record], int]:
    asked = {line: one.pairs() for line, one in examples.by_line.items() if not isinstance(one, Generation)}
    requests: list[Request] = []
    for line, pairs in asked.items():
        try:
            requests += [Request.of(tokenizer, before + context, answer) for context, answer in pairs]
        except (DataError, TokenizerError) as error:
            raise type(error)(f"{examples.path}: line {line}: {error}") from None
    likelihoods = iter(score_continuations(model, requests, device, dtype, console))
    records, truncated = [], 0
    for line, pairs in asked.items():
        some = [next(likelihoods) for _ in pairs]
        example = examples.by_line[line]
        assert not isinstance(example, Generation)
        cut = any(one.truncated for one in some)
        records.append({**_common_fields(examples, line, cut), **example.record(some)})
        truncated += cut
    return records, truncated


def _generate(
    model: CausalLanguageModel,
    tokenizer: Tokenizer,
    examples: Examples,
    before: str,
    settings: GenerationConfig,
    device: torch.device,
    console: Console,
) -> tuple[list[Record], int]:
    room = model.context_length - settings.max_tokens
    if room < 1:
        raise ConfigError(
            f"max_tokens is {settings.max_tokens}; the model sees {model.context_length} tokens, and the prompt "
            "needs some of them"
        )
    asked = {line: one for line, one in examples.by_line.items() if isinstance(one, Generation)}
    prompts = [
        encode_prompt(model, tokenizer, "", before + one.prompt, False, QUIET) for one in asked.values()
    ]
    fitted = [prompt[-room:] for prompt in prompts]
    completions = generate(model, tokenizer, fitted, [settings] * len(fitted), device, console)
    records: list[Record] = []
    truncated = 0
    for (line, example), prompt, completion in zip(asked.items(), prompts, completions, strict=True):
        cut = len(prompt) > room
        records.append(
            {**_common_fields(examples, line, cut), **example.generated_record(completion.text.strip())}
        )
        truncated += cut
    return records, truncated


def _common_fields(examples: Examples, line: int, truncated: bool) -> Record:
    """Return the common fields of every record."""
    name = {"id": examples.ids[line]} if line in examples.ids else {}
    return {"line": line, **name, "truncated": truncated}
