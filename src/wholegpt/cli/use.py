"""``evaluate``, ``compare`` and ``info``: how good a trained model is, which of two is better, what one is."""

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
"""Options of reading that tables of examples have too."""
ASSUMED_VOCABULARY = 4096
"""Tokens to count with where only a text would say how many."""


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
    """Measure how well a model predicts a text, or answers a file of examples.

    Parameters
    ----------
    run
        A run or model folder.
    sources
        Text files, folders or JSON lines; or one file of examples, a JSON object a line with context, choices and
        answer, or the fields of another kind (the guide lists them); of a fine-tuned model a table of its task.
        Without any, what the run itself held out.
    stride
        Tokens from one window to the next; a smaller one gives each token more context. 0: the window.
    context
        Tokens in a window. 0: all that the model can see.
    detokenize
        Undo what the published form of WikiText or the Penn Treebank did to its text: wikitext or ptb.
    shots
        Solved examples before each one.
    examples
        A file to draw the solved examples from; without it they are taken out of the evaluated one.
    max_tokens
        Most tokens of a generated text; 100 unless given.
    stop
        A text that ends a generated one, as the end of a line does unless given; may be given several times.
    records
        A file to write what became of each example to, as JSON lines.
    dtype
        Format of the large products; automatic is the run's own, or what training would choose here.
    weights
        How the weights are held: float32, or laid out in bfloat16, int8 or int4, whose products have their own format.
    checkpoint
        best, last, or the step of a checkpoint.

    """
    from wholegpt.runs.compare import answers_examples, reading_of, task_file
    from wholegpt.runs.load import load

    if dtype is not Dtype.automatic and weights is not WeightFormat.float32:
        raise ConfigError(f"--dtype changes nothing where weights are {weights}; leave one out")
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
            raise DataError("examples are evaluated one table at a time; name one")
        if sources:
            chosen = _settings(shots=shots, examples=examples, seed=common.seed)
            score = lm.evaluate_task(
                sources[0], dtype=dtype, console=common.console, **_greedy(generation), **chosen, **for_rows
            )
        else:
            from wholegpt.data.chat.conversations import ConversationData
            from wholegpt.data.examples.data import TaskData
            from wholegpt.runs.folder import run_examples

            _refuse(task_settings, "a run's own held-out examples")
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
        _refuse(_settings(stride=stride), "an encoder, which sees whole windows")
    if sources:
        measure = lm.pseudo_perplexity if encoder else lm.evaluate
        text = measure(*sources, dtype=dtype, console=common.console, **settings)
    elif not presets.is_run(Path(run)):
        raise DataError(
            f"{run}: is not a run, so it has no held-out text of its own; name a text to measure on"
        )
    else:
        from wholegpt.runs.folder import run_data

        _refuse(_settings(detokenize=detokenize, **reading.given()), "a run's own held-out text")
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
    """Say which of two models is better on a text or a file of examples, and whether that is certain.

    Parameters
    ----------
    first
        A run or model folder.
    second
        Another.
    sources
        What both are measured on: text files, folders or JSON lines, or one file of examples.
    stride
        Tokens from one window of text to the next. 0: the window.
    context
        Tokens in a window. 0: all that each model can see.
    detokenize
        Undo what the published form of WikiText or the Penn Treebank did to its text: wikitext or ptb.
    shots
        Solved examples before each one.
    examples
        A file to draw the solved examples from; without it they are taken out of the evaluated one.
    max_tokens
        Most tokens of a generated text; 100 unless given.
    stop
        A text that ends a generated one, as the end of a line does unless given; may be given several times.
    dtype
        Format of the large products; automatic is each run's own, or what training would choose here.
    weights
        How the weights of the second are held (those of the first stay float32): float32, bfloat16, int8 or int4.
    checkpoint
        best, last, or the step of a checkpoint, of both.

    """
    from wholegpt.runs import compare as comparing
    from wholegpt.runs import load as loading

    if not sources:
        raise DataError("name what both are to be measured on: texts, or a file of examples")
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
    """How texts are generated, where something of it was given."""
    from wholegpt.evaluation import GREEDY_LINE

    return {"generation": dataclasses.replace(GREEDY_LINE, **changes)} if changes else {}


def _settings(**options: Any) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in options.items() if value is not None}


def _taken(settings: dict[str, Any], *names: str) -> dict[str, Any]:
    """Some of the settings, those that are there, taken out of them."""
    return {name: settings.pop(name) for name in names if name in settings}


def _refuse(settings: dict[str, Any], measured: str) -> None:
    if settings:
        raise ConfigError(f"--{next(iter(settings)).replace('_', '-')} means nothing for {measured}")


def _write_records(path: Path, records: list[dict[str, Any]]) -> None:
    from wholegpt.files import write_text_atomic

    write_text_atomic(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def info(run: str, *, checkpoint: str = "best", common: CommonOptions = Common()) -> None:
    """Say what a run, a model folder or a preset is: parameters, cost, memory, settings, what it was taught.

    Parameters
    ----------
    run
        A run or model folder, or a preset such as gpt2-small.
    checkpoint
        best, last, or the step of a checkpoint.

    """
    config, taught = _known(run, checkpoint, common)
    from wholegpt.model.accounting import (
        flops_per_token,
        parameter_count,
        saved_activations,
        training_memory_bytes,
    )

    count = parameter_count(config)
    if config.architecture is Architecture.ngram and not presets.is_preset(run):  # which its text decided
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
        **taught,
    }
    cache = result["cache_bytes"]
    written = [("cache of a text as long as the context, float32", f"{cache:,} bytes")] if cache else []
    active = [("of them met by a token", f"{count.active:,}")] if count.unused else []
    trained = [
        ("without embeddings", f"{count.blocks:,}"),
        ("forward FLOPs per token", f"{result['flops_per_token']:,}"),
        ("weights, gradients and AdamW's moments in float32", f"{result['memory_bytes']:,} bytes"),
        (
            "kept for the backward pass in float32, a token",
            f"{result['activation_bytes_per_token']:,} bytes",
        ),
    ]
    counted = config.architecture is Architecture.ngram
    rows = [("parameters", f"{count.total:,}"), *active, *([] if counted else trained), *written]
    used = USED.get(config.architecture, tuple(result["config"]))
    told = {name: value for name, value in result["config"].items() if name in ("architecture", *used)}
    told |= taught
    common.show(result, table(rows + [(name, str(value)) for name, value in told.items()]))


def _cache_bytes(config: ModelConfig) -> int | None:
    """Of one text of τ tokens; none of a model that writes none."""
    import torch

    from wholegpt.checkpoint import make_model

    if config.architecture is Architecture.encoder:
        return None
    with torch.device("meta"):
        return make_model(config).cache_bytes(1, config.context_length)


def _known(run: str, checkpoint: str, common: Common) -> tuple[ModelConfig, dict[str, Any]]:
    """The architecture, and what the model was taught besides: the fields that it is controlled by, a task, LoRA."""
    if not presets.is_preset(run):
        from wholegpt.checkpoint import load_metadata, load_model_config, model_folder

        folder = model_folder(Path(run), checkpoint, common.console)
        metadata = {name: value for name, value in to_mapping(load_metadata(folder)).items() if value}
        return load_model_config(folder), metadata
    config = presets.preset(run)
    if config.vocab_size == 0:
        config = dataclasses.replace(config, vocab_size=ASSUMED_VOCABULARY)
        common.console.note(
            f"{run} takes its tokenizer's vocabulary; counted here with {config.vocab_size:,} tokens"
        )
    return complete_model(config), {}
