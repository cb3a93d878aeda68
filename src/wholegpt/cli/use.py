"""``generate``, ``evaluate`` and ``info``: what a trained model is good for, how good it is, what it is."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

from wholegpt import presets
from wholegpt.checks import complete_model
from wholegpt.cli.options import Common, CommonOptions, Reading, ReadingOptions, score_table, table
from wholegpt.config import Dtype, GenerationConfig, ModelConfig, to_mapping
from wholegpt.errors import DataError

ASSUMED_VOCABULARY = 4096
"""Tokens to count with where only a text would say how many."""


def generate(
    run: str,
    prompt: str = "",
    *,
    max_tokens: int = GenerationConfig.max_tokens,
    temperature: float = GenerationConfig.temperature,
    top_k: int = GenerationConfig.top_k,
    top_p: float = GenerationConfig.top_p,
    stop: tuple[str, ...] = (),
    checkpoint: str = "best",
    common: CommonOptions = Common(),
) -> None:
    """Let a model write.

    Parameters
    ----------
    run
        A run or model folder.
    prompt
        Text to continue; without one the model starts a document.
    max_tokens
        Most tokens to write.
    temperature
        0 always takes the likeliest token; 1 samples the model's own distribution.
    top_k
        Sample among the k likeliest tokens only; 0: all.
    top_p
        Sample among the likeliest tokens whose probabilities first reach this sum.
    stop
        A text that ends the completion; may be given several times.
    checkpoint
        best, last, or the step of a checkpoint.

    """
    from wholegpt.language_model import load

    lm = load(run, checkpoint=checkpoint, console=common.console, **common.placement())

    unwritten = [prompt]

    def emit(text: str) -> None:
        # The prompt waits for the first text, so that a refused setting leaves standard output empty.
        if not common.json:
            sys.stdout.write("".join([*unwritten, text]))
            sys.stdout.flush()
            unwritten.clear()

    completion = lm.generate(
        prompt,
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        stop=stop,
        seed=GenerationConfig.seed if common.seed is None else common.seed,
        emit=emit,
        console=common.console,
    )
    emit("")
    fields = ("text", "token_ids", "finish_reason")
    result = {
        "completions": [{name: getattr(completion, name) for name in fields}],
        "tokens_per_second": completion.tokens_per_second,
    }
    common.show(result, "")


def evaluate(
    run: str,
    *sources: str,
    stride: int = 0,
    dtype: Dtype = Dtype.automatic,
    checkpoint: str = "best",
    reading: ReadingOptions = Reading(),
    common: CommonOptions = Common(),
) -> None:
    """Measure how well a model predicts a text.

    Parameters
    ----------
    run
        A run or model folder.
    sources
        Text files, folders or JSON lines; without any, the run's own held-out text.
    stride
        Tokens from one window to the next; a smaller one gives each token more context. 0: the context length.
    dtype
        Format of the large products; automatic is the run's own, or what training would choose here.
    checkpoint
        best, last, or the step of a checkpoint.

    """
    from wholegpt.language_model import load

    lm = load(run, checkpoint=checkpoint, console=common.console, **common.placement())
    if sources:
        score = lm.evaluate(
            *sources,
            stride=stride,
            dtype=dtype,
            console=common.console,
            **reading.given(),
        )
    elif not (Path(run) / "config.yaml").exists():
        raise DataError(
            f"{run}: is not a run, so it has no held-out text of its own; name a text to measure on"
        )
    else:
        from wholegpt.api import run_data

        score = lm.evaluate_tokens(run_data(Path(run)).validation, stride, dtype, common.console)
    common.show(score.to_json(), score_table(score.to_json()))


def info(run: str, *, checkpoint: str = "best", common: CommonOptions = Common()) -> None:
    """Say what a run, a model folder or a preset is: parameters, cost, memory, settings.

    Parameters
    ----------
    run
        A run or model folder, or a preset such as gpt2-small.
    checkpoint
        best, last, or the step of a checkpoint.

    """
    config = _model_config(run, checkpoint, common)
    from wholegpt.model.accounting import flops_per_token, parameter_count, training_memory_bytes

    count = parameter_count(config)
    result: dict[str, Any] = {
        "parameters": count.total,
        "parameters_without_embeddings": count.blocks,
        "flops_per_token": flops_per_token(config),
        "memory_bytes": training_memory_bytes(config),
        "config": to_mapping(config),
    }
    rows = [
        ("parameters", f"{count.total:,}"),
        ("without embeddings", f"{count.blocks:,}"),
        ("forward FLOPs per token", f"{result['flops_per_token']:,}"),
        ("weights, gradients and AdamW's moments in float32", f"{result['memory_bytes']:,} bytes"),
    ]
    common.show(result, table(rows + [(name, str(value)) for name, value in result["config"].items()]))


def _model_config(run: str, checkpoint: str, common: Common) -> ModelConfig:
    if run not in presets.PRESETS:
        from wholegpt.checkpoint import load_model_config
        from wholegpt.language_model import model_folder

        return load_model_config(model_folder(Path(run), checkpoint, common.console))
    config = presets.preset(run)
    if config.vocab_size == 0:
        config = dataclasses.replace(config, vocab_size=ASSUMED_VOCABULARY)
        common.console.note(
            f"{run} takes its tokenizer's vocabulary; counted here with {config.vocab_size:,} tokens"
        )
    return complete_model(config)
