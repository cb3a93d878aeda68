"""``export`` and ``import``: models out to other programs and in from them."""

from typing import Annotated, Any, Literal

from cyclopts import Parameter

from wholegpt.cli.options import Common, CommonOptions, program_name

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
    """Write a model for other programs, and prove that it is the same model there.

    Parameters
    ----------
    run
        A run or model folder.
    to
        huggingface (opens with transformers), gguf (opens with llama.cpp), or peft (the LoRA of a run alone).
    out
        Folder of the export; RUN-huggingface, RUN-gguf-TYPE or RUN-peft unless given.
    type
        How GGUF stores matrices: in 32 bits, in 16, or in blocks of 8.
    checkpoint
        best, last, or the step of a checkpoint.
    overwrite
        Replace an export that is already in the --out folder.

    """
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
    """Make a model folder of a model from elsewhere.

    Parameters
    ----------
    path
        A folder that transformers saved (GPT-2, GPT-1 or Qwen3), nanoGPT's ckpt.pt, or a LoRA adapter.
    out
        The model folder; models/NAME unless given.
    tokenizer
        A tokenizer.json, or a folder with GPT-2's two files, where the model has none beside it.
    vocabulary_from
        The text whose characters a nanoGPT model was trained on.
    onto
        The run or model folder that an adapter is put on.
    overwrite
        Replace what is already in the --out folder.

    """
    from wholegpt.checkpoint import load_model_config
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
    result: dict[str, Any] = {
        "path": str(folder),
        "architecture": published_architecture(config)[0],
        "parameters": parameter_count(config).total,
    }
    common.show(
        result,
        f"{folder}: {result['architecture']}, {result['parameters']:,} parameters; "
        f'try `{program_name()} generate {folder} "Once"`',
    )
