"""Loading of a run, a model folder or a preset as a language model."""

import dataclasses
from os import PathLike, fspath
from pathlib import Path

import torch

from wholegpt import runtime
from wholegpt.checkpoint import CHECKPOINTS, load_model, model_folder
from wholegpt.console import Console
from wholegpt.data import PreparedData
from wholegpt.errors import ConfigError, DataError, TokenizerError
from wholegpt.language_model import LanguageModel
from wholegpt.model import CompiledTransformer, TokenModel, Transformer, quantize_weights, supports_packing
from wholegpt.model.lora import merge, remove_lora
from wholegpt.settings import presets
from wholegpt.settings.choices import AttentionKernel, Documents, Dtype, Execution, WeightFormat
from wholegpt.settings.keywords import checked_keywords
from wholegpt.settings.schema import PrecisionConfig
from wholegpt.tokenizers import byte_tokenizer


@checked_keywords
def load(
    path: str | PathLike[str],
    *,
    checkpoint: str | int = "best",
    device: str = "automatic",
    threads: int = 0,
    weights: WeightFormat | str = WeightFormat.float32,
    execution: Execution | str = Execution.eager,
    console: Console | None = None,
) -> LanguageModel:
    """Load a run (its ``best`` or ``last`` checkpoint, or that of a step), a model folder, or a fresh preset.

    A ``modern`` preset has a byte tokenizer. The published presets are for vocabularies that wholegpt does not
    contain, so they take token ids only.

    ``weights`` other than float32 are packed for inference only: bfloat16, int8 or int4; automatic is bfloat16 if the
    device and the architecture support it. With compiled ``execution``, a ``CompiledTransformer`` generates text, if
    PyTorch's compiler works.

    Raises ``CheckpointError`` for a folder without a model or with damaged ones only, ``ConfigError`` or
    ``NumericsError`` if the device does not support ``weights`` or the model cannot be compiled.
    """
    if not isinstance(path, str | PathLike):
        raise ConfigError(f"the path of a model is {path!r}; expected a text or a path")
    console, path = console or Console(), fspath(path)
    if not path:
        raise ConfigError("the path of a model is empty; name a run, a model folder or a preset")
    if not isinstance(checkpoint, str | int) or isinstance(checkpoint, bool):
        raise ConfigError(f"checkpoint is {checkpoint!r}; expected best, last, or the step of a checkpoint")
    chosen = runtime.choose_device(device)
    if weights not in list(WeightFormat):
        raise ConfigError(f"weights is '{weights}'; expected one of {', '.join(WeightFormat)}")
    if execution not in list(Execution):
        raise ConfigError(f"execution is '{execution}'; expected one of {', '.join(Execution)}")
    packing, dtype_of_rest = runtime.decide_weights(WeightFormat(weights), chosen)
    runtime.check_threads(threads)
    if threads:
        runtime.set_threads(threads)
    if presets.is_preset(str(path)):
        config, tokenizer = presets.preset(str(path)), None
        if config.vocab_size == 0:
            tokenizer = byte_tokenizer()
            config = dataclasses.replace(config, vocab_size=tokenizer.vocab_size)
        fresh = quantize_weights(Transformer(config, _attention(chosen)).to(chosen), packing, dtype_of_rest)
        generator = _generator_of(fresh, Execution(execution), console)
        return LanguageModel(fresh, tokenizer, _products(packing, Dtype.automatic), generator=generator)
    folder = model_folder(Path(path), str(checkpoint), console)
    loaded = load_model(folder, chosen, _attention(chosen))
    dtype, documents = _trained_with(Path(path), chosen)
    if loaded.metadata.lora:
        merge(loaded.model)
        remove_lora(loaded.model)
    metadata = loaded.metadata
    if folder.parent == Path(path) / "checkpoints" and not metadata.start_text:
        metadata = dataclasses.replace(metadata, start_text=_start_text(Path(path)))
    if weights == WeightFormat.automatic and not supports_packing(loaded.model):
        packing = WeightFormat.float32
    model = quantize_weights(loaded.model, packing, dtype_of_rest)
    generator = _generator_of(model, Execution(execution), console)
    return LanguageModel(model, loaded.tokenizer, _products(packing, dtype), documents, metadata, generator)


def _start_text(run: Path) -> str:
    """Return the start text from the data of a run of an earlier version, which did not record it."""
    folders = [run / "data", *map(Path, presets.recipe(str(run)).data.source[:1])]
    folder = next((one for one in folders if PreparedData.exists(one)), None)
    try:
        return PreparedData.open(folder).start_text if folder else ""
    except (DataError, TokenizerError, OSError):
        return ""


def _generator_of(model: TokenModel, execution: Execution, console: Console) -> TokenModel:
    """Return ``model`` or, if asked for, its compiled form. Raises ``ConfigError`` if it has none."""
    if execution is Execution.eager:
        return model
    compiled = CompiledTransformer(model.eval(), console)
    if problem := runtime.compiler_problem(model.device):
        console.warn(f"compiling fails here ({problem}); text is generated without compilation")
        return model
    console.note("the first token waits for PyTorch's compiler: half a minute to two, less the next time")
    return compiled


def _products(weights: WeightFormat, dtype: Dtype) -> Dtype:
    """Return the dtype of the products; packed weights have their own."""
    return dtype if weights is WeightFormat.float32 else Dtype.float32


def _trained_with(run: Path, device: torch.device) -> tuple[Dtype, Documents]:
    """Return the dtype in a run's config, if ``device`` supports it, and whether documents attended to each other."""
    # A checkpoint is a model folder by itself; its run is two folders up.
    checkpoints = run.absolute().parent
    recorded = checkpoints.parent if checkpoints.name == CHECKPOINTS else run
    if not presets.is_run(recorded):
        return Dtype.automatic, Documents.joined
    config = presets.run_config(recorded)
    dtype = config.precision.dtype
    missing = dtype is Dtype.bfloat16 and not runtime.has_bfloat16(device)
    return Dtype.automatic if missing else dtype, config.windows.documents


def _attention(device: torch.device) -> AttentionKernel:
    return runtime.decide_precision(PrecisionConfig(), device).attention
