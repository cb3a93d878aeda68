"""``export`` and ``import``: exchange models with other programs."""

from shlex import quote
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from wholegpt.cli.options import Common, CommonOptions, next_commands, program_name
from wholegpt.settings.models import check_model_exists

Flag = Parameter(negative="")


def export(
    run: str,
    *,
    to: Literal["huggingface", "gguf", "peft"],
    out: str | None = None,
    type: Literal["f32", "f16", "q8_0"] = "f32",  # noqa: A002 (the option's name)
    checkpoint: str = "best",
    overwrite: Annotated[bool, Flag] = False,
    common: CommonOptions = Common(),
) -> None:
    """Export a model for other programs, with a report that compares both.

    Parameters
    ----------
    run
        A run or model folder.
    to
        Format: huggingface (for transformers), gguf (for llama.cpp), or peft (only the LoRA adapter of a run).
    out
        Output folder. Default: RUN-huggingface, RUN-gguf-TYPE or RUN-peft.
    type
        Data type of GGUF matrices: float32 (f32), float16 (f16), or 8-bit blocks (q8_0).
    checkpoint
        Checkpoint to export: best, last, or a step.
    overwrite
        Replace an existing export in the --out folder.

    Examples
    --------
    wholegpt export runs/mine --to huggingface
    wholegpt export runs/mine --to gguf --type q8_0

    """
    check_model_exists(run)
    from wholegpt.interop.conversion import export_model

    made = export_model(
        run, to, out, tensor_type=type, checkpoint=checkpoint, overwrite=overwrite, console=common.console
    )
    lines = [*(report.describe() for report in made.parity_reports), *made.unchecked]
    common.show(made.to_json(), "\n".join([str(made.path), *(f"  {line}" for line in lines)]))


def import_(
    path: str,
    *,
    out: str | None = None,
    tokenizer: str | None = None,
    vocabulary_from: str | None = None,
    onto: str | None = None,
    overwrite: Annotated[bool, Flag] = False,
    common: CommonOptions = Common(),
) -> None:
    """Import a model from another program as a model folder.

    Parameters
    ----------
    path
        A folder saved by transformers (GPT-2, Llama, Mistral, Qwen2, Qwen3 or GPT-1), a GGUF file, nanoGPT's ckpt.pt,
        a PEFT LoRA adapter, or OWNER/NAME of a model on the Hugging Face hub.
    out
        Output folder. Default: models/NAME.
    tokenizer
        A tokenizer.json, or a folder with encoder.json and vocab.bpe, if the model has no tokenizer.
    vocabulary_from
        Training text of a character-level nanoGPT model, for its vocabulary.
    onto
        Run or model folder to which an adapter is applied.
    overwrite
        Replace an existing model in the --out folder.

    Examples
    --------
    wholegpt import gpt2/ --out models/gpt2
    wholegpt import model.gguf

    """
    from wholegpt.checkpoint import load_metadata, load_model_config
    from wholegpt.interop.conversion import import_model
    from wholegpt.model import parameter_count
    from wholegpt.settings.presets import published_architecture

    folder = import_model(
        path,
        out,
        tokenizer=tokenizer,
        vocabulary_from=vocabulary_from,
        onto=onto,
        overwrite=overwrite,
        console=common.console,
    )
    config = load_model_config(folder)
    model = quote(str(folder))
    if load_metadata(folder).chat_template:
        next_step = (f"{program_name()} chat {model}", "talk to it")
    else:
        next_step = (f'{program_name()} generate {model} "Once"', "generate text")
    result: dict[str, Any] = {
        "path": str(folder),
        "architecture": published_architecture(config)[0],
        "parameters": parameter_count(config).total,
    }
    common.show(
        result,
        f"{folder}: {result['architecture']}, {result['parameters']:,} parameters",
        next_commands(next_step),
    )
