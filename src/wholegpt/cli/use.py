"""``evaluate`` and ``compare``: measure a model, or compare two."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from wholegpt.cli.mistakes import check_models_first
from wholegpt.cli.options import (
    Common,
    CommonOptions,
    Reading,
    ReadingOptions,
    check_new_file,
    comparison_table,
    score_table,
    task_table,
)
from wholegpt.errors import ConfigError, DataError
from wholegpt.settings import presets
from wholegpt.settings.choices import Architecture, Dtype, WeightFormat
from wholegpt.settings.schema import GenerationConfig

if TYPE_CHECKING:
    from wholegpt.console import Console
    from wholegpt.evaluation import PseudoPerplexity, TextEvaluation
    from wholegpt.language_model import LanguageModel

ROW_OPTIONS = ("encoding", "on_bad_text", "on_bad_line")
"""Reading options that also apply to tables of examples."""


def evaluate(
    run: str,
    *sources: str,
    stride: int | None = None,
    context: int | None = None,
    detokenize: Literal["none", "wikitext", "ptb"] | None = None,
    shots: int | None = None,
    examples: str | None = None,
    max_tokens: int | None = None,
    stop: tuple[str, ...] | None = None,
    records: str | None = None,
    dtype: Dtype = Dtype.automatic,
    weights: WeightFormat = WeightFormat.float32,
    checkpoint: str = "best",
    reading: ReadingOptions = Reading(),
    common: CommonOptions = Common(),
) -> None:
    """Evaluate a model on text or on a file of examples.

    Parameters
    ----------
    run
        Run or model folder.
    sources
        Text files, folders or tables; or one file of examples: JSON lines with context, choices and answer, or the
        fields of another kind (see docs/evaluation.md); for a fine-tuned model a table of its task. Default: the
        validation data of the run.
    stride
        Tokens between the starts of windows. Smaller values give each token more context. 0: the window.
    context
        Tokens per window. 0: the context length of the model.
    detokenize
        Restore the original text of WikiText (wikitext) or the Penn Treebank (ptb) before tokenization.
    shots
        Number of solved examples before each example (few-shot).
    examples
        File of solved examples. Default: taken from the evaluated file, which is then evaluated without them.
    max_tokens
        Maximum tokens of a generated answer. Default: 100.
    stop
        Text that ends a generated answer. Default: a line break. Can be repeated.
    records
        Output file (JSON lines) for the result of each example.
    dtype
        Data type of matrix products. automatic: that of the run, or the default of training on this machine.
    weights
        Data type of the weights: float32, or quantized to bfloat16, int8 or int4 (with their own matrix products).
    checkpoint
        Checkpoint to use: best, last, or a step.

    Examples
    --------
    wholegpt evaluate runs/mine
    wholegpt evaluate runs/mine other.txt --stride 64

    """
    check_models_first("evaluate", run, *sources)
    from wholegpt.runs.compare import answers_examples, reading_of, task_file
    from wholegpt.runs.load import load
    from wholegpt.runs.train import evaluate_run_examples

    if dtype is not Dtype.automatic and weights is not WeightFormat.float32:
        raise ConfigError(f"--dtype does not apply to {weights} weights; leave one out")
    settings = _settings(stride=stride, context=context, detokenize=detokenize, **reading.given())
    generation = _settings(max_tokens=max_tokens, stop=stop)
    task_settings = _settings(shots=shots, examples=examples, **generation)
    check_new_file(records, "--records")
    lm = load(run, checkpoint=checkpoint, weights=weights, console=common.console, **common.placement())
    for_tables = reading_of(reading.given())
    by_table = answers_examples(lm, *sources, reading=for_tables)
    if by_table or task_file(*sources, text_field=reading.text_field, encoding=for_tables.encoding):
        for_rows = _taken(settings, *ROW_OPTIONS) if sources else {}
        _refuse(settings, "a file of examples")
        if len(sources) > 1:
            raise DataError("only one file of examples can be evaluated at a time; give one")
        if sources:
            chosen = _settings(shots=shots, examples=examples, seed=common.seed)
            score = lm.evaluate_task(
                sources[0], dtype=dtype, console=common.console, **_greedy(generation), **chosen, **for_rows
            )
        else:
            _refuse(task_settings, "the validation examples of a run")
            common.console.note("evaluating on the held-out examples of the run")
            score = evaluate_run_examples(Path(run), lm, dtype, common.console)
        common.show(score.to_json(), task_table(score.to_json()))
        if records:
            _write_records(Path(records), score.records)
        return
    _refuse({**task_settings, **_settings(records=records)}, "text")
    encoder = lm.model.config.architecture is Architecture.encoder
    if encoder:
        _refuse(_settings(stride=stride), "an encoder, which always sees whole windows")
    if sources:
        measure = lm.pseudo_perplexity if encoder else lm.evaluate
        text = measure(*sources, dtype=dtype, console=common.console, **settings)
    else:
        text = _evaluate_run_text(lm, Path(run), settings, dtype, common.console)
    common.show(text.to_json(), score_table(text.to_json()))


def _evaluate_run_text(
    lm: "LanguageModel", run: Path, settings: dict[str, Any], dtype: Dtype, console: "Console"
) -> "TextEvaluation | PseudoPerplexity":
    """Evaluate a model on the validation text of its run. Raises ``DataError`` for a folder that is not a run."""
    from wholegpt.runs.folder import run_data

    if not presets.is_run(run):
        raise DataError(f"{run}: is not a run and has no validation text; give a text to evaluate on")
    windows = {"stride": 0, "context": 0, **_taken(settings, "stride", "context")}
    _refuse(settings, "the validation text of a run")
    held_out = run_data(run).validation
    console.note("evaluating on the held-out text of the run")
    if not lm.model.predicts_next_token:
        return lm.pseudo_perplexity_of_tokens(held_out, dtype, console, windows["context"])
    return lm.evaluate_tokens(held_out, windows["stride"], dtype, console, context=windows["context"])


def compare(
    first: str,
    second: str,
    *sources: str,
    stride: int | None = None,
    context: int | None = None,
    detokenize: Literal["none", "wikitext", "ptb"] | None = None,
    shots: int | None = None,
    examples: str | None = None,
    max_tokens: int | None = None,
    stop: tuple[str, ...] | None = None,
    dtype: Dtype = Dtype.automatic,
    weights: WeightFormat = WeightFormat.float32,
    checkpoint: str = "best",
    reading: ReadingOptions = Reading(),
    common: CommonOptions = Common(),
) -> None:
    """Compare two models on text or on a file of examples, with a significance test.

    Parameters
    ----------
    first
        Run or model folder.
    second
        Another run or model folder.
    sources
        Text files, folders or tables, or one file of examples.
    stride
        Tokens between the starts of windows. 0: the window.
    context
        Tokens per window. 0: the context length of each model.
    detokenize
        Restore the original text of WikiText (wikitext) or the Penn Treebank (ptb) before tokenization.
    shots
        Number of solved examples before each example (few-shot).
    examples
        File of solved examples. Default: taken from the evaluated file, which is then evaluated without them.
    max_tokens
        Maximum tokens of a generated answer. Default: 100.
    stop
        Text that ends a generated answer. Default: a line break. Can be repeated.
    dtype
        Data type of matrix products. automatic: that of each run, or the default of training on this machine.
    weights
        Data type of the weights of the second model: float32, bfloat16, int8 or int4. The first one stays float32.
    checkpoint
        Checkpoint of both: best, last, or a step.

    Examples
    --------
    wholegpt compare runs/mine runs/other held-out.txt
    wholegpt compare runs/mine runs/mine held-out.txt --weights int8

    """
    check_models_first("compare", first, second, *sources, models=2)
    from wholegpt.runs import compare as comparing
    from wholegpt.runs import load as loading

    if not sources:
        raise DataError("give texts or a file of examples to compare on")
    for_tasks = _settings(shots=shots, examples=examples, max_tokens=max_tokens, stop=stop)
    for_texts = _settings(stride=stride, context=context, detokenize=detokenize, **reading.given())
    models = [
        loading.load(one, checkpoint=checkpoint, weights=held, console=common.console, **common.placement())
        for one, held in ((first, WeightFormat.float32), (second, weights))
    ]
    for_tables = comparing.reading_of(reading.given())
    by_table = any(comparing.answers_examples(lm, *sources, reading=for_tables) for lm in models)
    if by_table or comparing.task_file(*sources, text_field=reading.text_field, encoding=for_tables.encoding):
        for_rows = _taken(for_texts, *ROW_OPTIONS)
        _refuse(for_texts, "a file of examples")
        generation = _greedy(_settings(max_tokens=max_tokens, stop=stop))
        settings = {
            **_settings(shots=shots, examples=examples, seed=common.seed),
            **generation,
            **for_rows,
        }
    else:
        _refuse(for_tasks, "text")
        settings = for_texts
    compared = comparing.compare(
        models[0], models[1], *sources, dtype=dtype, console=common.console, **settings
    )
    result = {name: one.to_json() for name, one in compared.items()}
    common.show({"first": first, "second": second, **result}, comparison_table(result))


def _greedy(changes: dict[str, Any]) -> dict[str, GenerationConfig]:
    """Return the settings of generation if any were given."""
    from wholegpt.evaluation import GREEDY_LINE

    return {"generation": dataclasses.replace(GREEDY_LINE, **changes)} if changes else {}


def _settings(**options: Any) -> dict[str, Any]:
    """Return the given options."""
    return {name: value for name, value in options.items() if value is not None}


def _taken(settings: dict[str, Any], *names: str) -> dict[str, Any]:
    """Remove the named options from ``settings`` and return those that were there."""
    return {name: settings.pop(name) for name in names if name in settings}


def _refuse(settings: dict[str, Any], measured: str) -> None:
    if settings:
        raise ConfigError(
            f"--{next(iter(settings)).replace('_', '-')} does not apply to {measured}; leave it out"
        )


def _write_records(path: Path, records: list[dict[str, Any]]) -> None:
    from wholegpt.files import write_text_atomic

    write_text_atomic(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
