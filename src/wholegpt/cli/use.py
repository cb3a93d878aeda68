"""``evaluate``, ``compare`` and ``info``: measure a model, compare two, describe one."""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

from wholegpt.cli.options import (
    Common,
    CommonOptions,
    Reading,
    ReadingOptions,
    check_new_file,
    comparison_table,
    score_table,
    table,
    task_table,
)
from wholegpt.errors import ConfigError, DataError
from wholegpt.settings import presets
from wholegpt.settings.choices import Architecture, AttentionKernel, Dtype, WeightFormat
from wholegpt.settings.schema import GenerationConfig, ModelConfig
from wholegpt.settings.serialization import to_mapping
from wholegpt.settings.validation import USED, complete_model

ROW_OPTIONS = ("encoding", "on_bad_text", "on_bad_line")
"""Reading options that also apply to tables of examples."""
ASSUMED_VOCABULARY = 4096
"""Vocabulary size for the counts of presets that take it from the tokenizer."""


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

    """
    from wholegpt.runs.compare import answers_examples, reading_of, task_file
    from wholegpt.runs.load import load

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
            from wholegpt.data.chat.conversations import ConversationData
            from wholegpt.data.examples.data import TaskData
            from wholegpt.runs.folder import run_examples

            _refuse(task_settings, "the validation examples of a run")
            folder = run_examples(Path(run))
            if lm.task:
                held_out = TaskData.open(folder).validation
                score = lm.evaluate_examples(held_out, dtype, common.console)
            else:
                conversations = ConversationData.open(folder).validation
                score = lm.evaluate_conversations(conversations, dtype, common.console)
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
    elif not presets.is_run(Path(run)):
        raise DataError(f"{run}: is not a run and has no validation text; give a text to evaluate on")
    else:
        from wholegpt.runs.folder import run_data

        _refuse(_settings(detokenize=detokenize, **reading.given()), "the validation text of a run")
        held_out = run_data(Path(run)).validation
        if encoder:
            text = lm.pseudo_perplexity_of_tokens(held_out, dtype, common.console, context or 0)
        else:
            text = lm.evaluate_tokens(held_out, stride or 0, dtype, common.console, context=context or 0)
    common.show(text.to_json(), score_table(text.to_json()))


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

    """
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


def info(run: str, *, checkpoint: str = "best", common: CommonOptions = Common()) -> None:
    """Describe a run, a model folder or a preset: parameters, FLOPs, memory, settings and metadata.

    Parameters
    ----------
    run
        Run or model folder, or a preset such as gpt2-small.
    checkpoint
        Checkpoint to use: best, last, or a step.

    """
    config, metadata = _known(run, checkpoint, common)
    from wholegpt.model.accounting import (
        flops_per_token,
        parameter_count,
        saved_activations,
        training_memory_bytes,
    )

    count = parameter_count(config)
    if config.architecture is Architecture.ngram and not presets.is_preset(
        run
    ):  # its size depends on the text
        from wholegpt.runs.load import load

        counted = load(run, checkpoint=checkpoint, console=common.console).model.parameter_count
        count = dataclasses.replace(count, blocks=counted)
    result: dict[str, Any] = {
        "parameters": count.total,
        **({"active_parameters": count.active} if count.unused else {}),
        "parameters_without_embeddings": count.blocks,
        "flops_per_token": flops_per_token(config),
        "memory_bytes": training_memory_bytes(config),
        "activation_bytes_per_token": 4 * saved_activations(config, AttentionKernel.fused),
        "cache_bytes": _cache_bytes(config),
        "config": to_mapping(config),
        **metadata,
    }
    cache = result["cache_bytes"]
    written = (
        [("KV cache of one sequence of the context length, float32", f"{cache:,} bytes")] if cache else []
    )
    active = [("active per token", f"{count.active:,}")] if count.unused else []
    trained = [
        ("without embeddings", f"{count.blocks:,}"),
        ("forward FLOPs per token", f"{result['flops_per_token']:,}"),
        ("weights, gradients and AdamW states in float32", f"{result['memory_bytes']:,} bytes"),
        (
            "activations for the backward pass per token, float32",
            f"{result['activation_bytes_per_token']:,} bytes",
        ),
    ]
    counted = config.architecture is Architecture.ngram
    rows = [("parameters", f"{count.total:,}"), *active, *([] if counted else trained), *written]
    used = USED.get(config.architecture, tuple(result["config"]))
    told = {name: value for name, value in result["config"].items() if name in ("architecture", *used)}
    told |= metadata
    common.show(result, table(rows + [(name, str(value)) for name, value in told.items()]))


def _cache_bytes(config: ModelConfig) -> int | None:
    """Return the KV cache size of one sequence of τ tokens; ``None`` for a model that does not generate."""
    import torch

    from wholegpt.checkpoint import make_model

    if config.architecture is Architecture.encoder:
        return None
    with torch.device("meta"):
        return make_model(config).cache_bytes(1, config.context_length)


def _known(run: str, checkpoint: str, common: Common) -> tuple[ModelConfig, dict[str, Any]]:
    """Return the architecture and the metadata: control codes, task, LoRA."""
    if not presets.is_preset(run):
        from wholegpt.checkpoint import load_metadata, load_model_config, model_folder

        folder = model_folder(Path(run), checkpoint, common.console)
        metadata = {name: value for name, value in to_mapping(load_metadata(folder)).items() if value}
        return load_model_config(folder), metadata
    config = presets.preset(run)
    if config.vocab_size == 0:
        config = dataclasses.replace(config, vocab_size=ASSUMED_VOCABULARY)
        common.console.note(
            f"{run}: the vocabulary size depends on the tokenizer; {config.vocab_size:,} is assumed here"
        )
    return complete_model(config), {}
