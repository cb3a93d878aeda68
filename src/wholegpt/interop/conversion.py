"""Export models to other programs with parity reports, and import models from them."""

import contextlib
import glob
import importlib.util
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from wholegpt.checkpoint import (
    CHAT_TEMPLATE,
    NO_METADATA,
    TOKENIZER,
    ModelFolder,
    ModelMetadata,
    is_model_folder,
    listed,
    load_model,
    model_folder,
    read_object,
    save_model,
)
from wholegpt.console import QUIET, Console
from wholegpt.data import read_text
from wholegpt.data.chat.template import ChatTemplate
from wholegpt.errors import CheckpointError, ConfigError, RunError, TokenizerError
from wholegpt.files import lock_folder, write_folder_atomic, write_json_atomic, write_text_atomic
from wholegpt.interop import gguf, huggingface, nanogpt, peft
from wholegpt.interop.foreign import PICKLES
from wholegpt.interop.gguf import TensorType
from wholegpt.interop.gguf_architectures import SUFFIX
from wholegpt.interop.gguf_file import GgufFile
from wholegpt.interop.gguf_tokenizer import ends_in, read_tokenizer
from wholegpt.interop.hub import from_hub
from wholegpt.interop.parity_report import MOST_TOKENS, ForeignModel, Logits, ParityReport, compare, encoder
from wholegpt.interop.sidecar import chat_template_in, chat_template_of
from wholegpt.interop.source import model_in
from wholegpt.model import TokenModel, Transformer
from wholegpt.model.heads import extend_vocabulary
from wholegpt.model.lora import base_tensors, merge, remove_lora
from wholegpt.settings.choices import TaskKind
from wholegpt.settings.keywords import checked_keywords
from wholegpt.settings.presets import published_architecture
from wholegpt.settings.schema import ModelConfig
from wholegpt.settings.serialization import nearest
from wholegpt.tokenizers import (
    END_OF_TEXT,
    TOKENIZER_FILES,
    Tokenizer,
    character_tokenizer,
    open_tokenizer,
)

PARITY_REPORTS, OLD_PARITY_REPORTS = "parity_reports.json", "certificate.json"
"""File of an export that lists its files and its parity reports; the second name is from earlier versions."""
PADDED_SHARE = 0.25
"""Largest share of a vocabulary that may be rows without tokens, as in published models padded to a round
size.
"""
PADDED_MULTIPLE, MOST_PADDED_ROWS = 64, 256
"""A small vocabulary may have more: up to the next multiple of 64, 128 or 256."""


class Format(StrEnum):
    """Formats that a model can be exported to."""

    huggingface = "huggingface"
    gguf = "gguf"
    peft = "peft"
    """Only the LoRA of a model."""


HUGGINGFACE_TOLERANCE = 2e-5
"""Largest allowed logit difference, as a share of the largest logit or of 1: rounding in float32."""
TOLERANCES = {TensorType.f32: 2e-3, TensorType.f16: 1e-2, TensorType.q8_0: 1e-1}
"""The same for GGUF, where llama.cpp looks up GELU in 16 bits; docs/interoperability.md has measured values."""


@dataclass(frozen=True)
class Export:
    """The result of an export."""

    path: Path
    """The folder of the export."""
    files: list[Path]
    parity_reports: list[ParityReport]
    """One report for each program that opened the export."""
    unchecked: list[str] = field(default_factory=list)
    """Checks that were not possible, and why."""

    def to_json(self) -> dict[str, Any]:
        """Return the output of ``wholegpt export --json``, which is also the content of
        ``parity_reports.json``.
        """
        return {
            "path": str(self.path),
            "files": [file.name for file in self.files],
            "parity_reports": [report.to_json() for report in self.parity_reports],
            "unchecked": self.unchecked,
        }


@checked_keywords
def export_model(
    run: str | PathLike[str],
    to: Format | str,
    out: str | Path | None = None,
    *,
    tensor_type: TensorType | str = TensorType.f32,
    checkpoint: str = "best",
    overwrite: bool = False,
    console: Console | None = None,
) -> Export:
    """Export the model of a run or model folder for other programs, and check that it is the same model there.

    The export is written to the folder ``out`` (default ``RUN-huggingface``, ``RUN-gguf-TYPE`` or
    ``RUN-peft``), whole or not at all. ``tensor_type`` is GGUF's storage type of matrices. ``peft`` exports
    only the LoRA, for the base model of the run, with the rows of new tokens. Raises ``ConfigError`` naming
    settings that the format does not support, ``CheckpointError`` if the measured difference exceeds the
    tolerance.
    """
    console, format_ = console or Console(), chosen(Format, to, "to")
    stored = chosen(TensorType, tensor_type, "type")
    if stored is not TensorType.f32 and format_ is not Format.gguf:
        raise ConfigError(f"type {stored} is for gguf; {format_} exports are in float32")
    source = Path(run)
    whole = source.resolve()
    kind = f"{format_}-{stored}" if format_ is Format.gguf else format_
    folder = Path(out) if out else whole.with_name(f"{whole.name}-{kind}")
    with lock_folder(folder, "export"):
        own = _files_of_export(folder)
        _check_free(folder, overwrite, bool(own), "an export")
        return _export(source, folder, own, format_, stored, checkpoint, console)


def _export(
    source: Path,
    folder: Path,
    own: list[str],
    format_: Format,
    stored: TensorType,
    checkpoint: str,
    console: Console,
) -> Export:
    """Write the export into ``folder``, replacing the files ``own``."""
    whole = source.resolve()
    loaded = load_model(model_folder(source, checkpoint, console))
    lora, template, task = loaded.metadata.lora, loaded.metadata.chat_template, loaded.metadata.task
    if task and task.kind is TaskKind.reward:
        raise ConfigError(
            f"{source}: is a reward model, which is no language model; export the model that it was trained from"
        )
    if format_ is Format.peft and lora is None:
        raise ConfigError(f"{source}: has no LoRA; `wholegpt finetune --lora.rank 8` trains one")
    if loaded.metadata.control:
        console.warn(
            f"other programs do not support the model's control codes ({listed(sorted(loaded.metadata.control))}): "
            "there, start the prompt with their header line yourself"
        )
    if format_ is not Format.peft:
        loaded = _language_model(loaded, console)
    loaded.model.eval()
    export: Export | None = None

    def fill(target: Path) -> None:
        nonlocal export
        if format_ is Format.huggingface:
            huggingface.write(target, loaded.model, loaded.tokenizer, template)
            opened, unchecked = _reopened_huggingface(target, loaded, console)
            tolerance = HUGGINGFACE_TOLERANCE
        elif lora and format_ is Format.peft:
            peft.write_adapter(target, loaded.model, lora, loaded.metadata.new_tokens)
            loaded.tokenizer.save(target / TOKENIZER)
            if template:
                write_text_atomic(target / CHAT_TEMPLATE, template)
            opened, unchecked = _reopened_adapter(target, loaded, console)
            tolerance = HUGGINGFACE_TOLERANCE
        else:
            file = target / f"{whole.name}-{stored}.gguf"
            gguf.write(file, loaded.model, loaded.tokenizer, stored, template)
            opened, unchecked = _reopened_gguf(file, loaded, console)
            tolerance = TOLERANCES[stored]
        context_length = min(loaded.model.config.context_length, MOST_TOKENS)
        parity_reports = [
            compare(_logits(loaded.model), one, loaded.tokenizer, context_length, tolerance, console)
            for one in opened
        ]
        files = [folder / path.name for path in sorted(target.iterdir())]
        export = Export(folder, files, parity_reports, unchecked)
        write_json_atomic(target / PARITY_REPORTS, export.to_json())

    write_folder_atomic(folder, fill, own)
    assert export
    return export


def _language_model(loaded: ModelFolder, console: Console) -> ModelFolder:
    """Return the model with merged LoRA and without a task head, which other programs do not support."""
    if loaded.metadata.lora:
        merge(loaded.model)
        remove_lora(loaded.model)
    if loaded.metadata.task is None:
        return ModelFolder(loaded.model, loaded.tokenizer)
    console.note(f"the head for {loaded.metadata.task.kind} is not exported, only the language model")
    plain = Transformer(loaded.model.config)
    tensors = loaded.model.state_dict()
    plain.load_state_dict({name: tensors[name] for name in plain.state_dict()})
    return ModelFolder(plain, loaded.tokenizer)


T = TypeVar("T", bound=StrEnum)


def chosen(kind: type[T], value: str, option: str) -> T:
    """Return the member of ``kind`` named ``value``. Raises ``ConfigError`` naming the ``option`` and its
    values.
    """
    if value not in list(kind):
        raise ConfigError(f"{option} is '{value}'; {nearest(value, list(kind))}")
    return kind(value)


def _check_free(folder: Path, overwrite: bool, ours: bool, what: str) -> None:
    """Raise ``RunError`` for a folder that must not be replaced; ``ours`` says whether it is ``what`` is expected."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not ours:
        raise RunError(f"{folder}: exists and is not {what}; name another --out")
    if not overwrite:
        raise RunError(
            f"{folder}: exists; name another --out, or replace it with --overwrite (in Python, overwrite=True)"
        )


def _files_of_export(folder: Path) -> list[str]:
    """Return the names of the files that an export wrote into ``folder``; empty if it is not an export."""
    for report, key in ((PARITY_REPORTS, "parity_reports"), (OLD_PARITY_REPORTS, "certificates")):
        try:
            content = read_object(folder / report)
        except CheckpointError:
            continue
        files = content.get("files")
        if isinstance(files, list) and isinstance(content.get(key), list):
            names = (name for name in files if isinstance(name, str) and Path(name).name == name)
            return [report, *map(glob.escape, names)]
    return []


def _reopened_huggingface(
    target: Path, loaded: ModelFolder, console: Console
) -> tuple[list[ForeignModel], list[str]]:
    config, tensors = huggingface.read(target)
    _refuse_changed(loaded.model, tensors)
    own = ForeignModel(
        "wholegpt itself",
        _logits(_built(config, tensors)),
        encoder(Tokenizer.load(target / "tokenizer.json")),
    )
    try:
        with _opening("transformers", "transformers", console):
            return [own, huggingface.open_with_transformers(target)], []
    except ImportError as error:
        return [own], [f"transformers did not open it ({error}): pip install transformers, and export again"]


def _reopened_adapter(
    target: Path, loaded: ModelFolder, console: Console
) -> tuple[list[ForeignModel], list[str]]:
    """Open the adapter on its base model, with wholegpt and with ``peft``."""
    head = loaded.metadata.task
    if head:
        console.note(f"the head for {head.kind} is not exported; the adapter changes the language model only")
    base = Transformer(loaded.model.config)
    tensors = {name: tensor.clone() for name, tensor in base_tensors(loaded.model).items()}
    base.load_state_dict({name: tensors[name] for name in base.own_tensors()}, strict=False)
    new = loaded.metadata.new_tokens
    with torch.no_grad():  # the new rows come from the adapter
        for weight in (base.token_embedding.weight, base.unembedding.weight) if new else ():
            weight[-new:] = 0.0
    with tempfile.TemporaryDirectory() as folder:
        try:
            huggingface.write(Path(folder), base, loaded.tokenizer)
            opened = [peft.open_with_peft(Path(folder), target, encoder(loaded.tokenizer))]
            unchecked: list[str] = []
        except ImportError as error:
            opened, unchecked = [], [f"peft did not open it ({error}): pip install peft, and export again"]
        except ConfigError as error:
            opened, unchecked = (
                [],
                [f"peft cannot open it, since transformers does not support the model: {error}"],
            )
    peft.load_adapter(target, base)
    own = ForeignModel("wholegpt itself", _logits(base.eval()), encoder(Tokenizer.load(target / TOKENIZER)))
    return [own, *opened], unchecked


def _reopened_gguf(file: Path, loaded: ModelFolder, console: Console) -> tuple[list[ForeignModel], list[str]]:
    config = loaded.model.config
    written = GgufFile(file)
    encode = encoder(read_tokenizer(written.metadata, file))
    own = ForeignModel("the gguf library", _logits(_built(*written.read())), encode)
    try:
        with _opening("llama_cpp", "llama.cpp", console):
            return [own, gguf.open_with_llama_cpp(file, min(config.context_length, MOST_TOKENS))], []
    except ImportError as error:
        missing = (
            f"llama.cpp did not open it ({error}), so its own computation and tokenizer were not checked: "
            "pip install llama-cpp-python, and export again"
        )
        return [own], [missing]


def _opening(module: str, program: str, console: Console) -> contextlib.AbstractContextManager[None]:
    """Return a block in which ``program`` opens an export; it is announced if its Python module is installed."""
    if importlib.util.find_spec(module):
        return console.working(f"opening the export with {program}")
    return contextlib.nullcontext()


def _refuse_changed(model: TokenModel, tensors: dict[str, Tensor]) -> None:
    """Raise ``CheckpointError`` if a tensor was changed."""
    for name, tensor in model.own_tensors().items():
        if not torch.equal(tensor, tensors[name]):
            raise CheckpointError(f"the export is not the same model: {name} came back changed")


def _built(config: ModelConfig, tensors: dict[str, Tensor]) -> Transformer:
    model = Transformer(config)
    model.load_state_dict(tensors, strict=False)
    return model.eval()


def _logits(model: TokenModel) -> Logits:
    @torch.inference_mode()
    def logits(token_ids: list[int]) -> Tensor:
        return model(torch.tensor([token_ids]))[0]

    return logits


@checked_keywords
def import_model(
    path: str | Path,
    out: str | Path | None = None,
    *,
    tokenizer: str | Path | None = None,
    vocabulary_from: str | Path | None = None,
    onto: str | Path | None = None,
    overwrite: bool = False,
    console: Console | None = None,
) -> Path:
    """Import a model folder saved by ``transformers``, a GGUF file or nanoGPT's ``ckpt.pt``, as a model folder.

    OWNER/NAME is downloaded from the Hugging Face hub if there is no such folder (this needs ``huggingface_hub``).

    A LoRA adapter saved by ``peft`` or ``export_model`` is imported together with its base model ``onto``.

    The result is ``out``, by default ``models/NAME``. The tokenizer is the one beside the model, or
    ``tokenizer`` (a tokenizer.json, or a folder with GPT-2's two files), or the characters of the text
    ``vocabulary_from``, with nanoGPT's ids. Raises ``CheckpointError`` for a model that is damaged, unknown
    or inconsistent, ``TokenizerError`` for a tokenizer that is missing or does not fit the model.
    """
    console = console or Console()
    if tokenizer and vocabulary_from:
        raise ConfigError("tokenizer and vocabulary_from are given; a model has one vocabulary")
    if downloaded := from_hub(str(path), console):
        out, path = out or Path("models") / Path(path).name, downloaded
    path = Path(path)
    source = model_in(path)
    whole = source.resolve()
    name = whole.stem if whole.suffix == SUFFIX else whole.parent.name if whole.is_file() else whole.name
    folder = Path(out) if out else Path("models") / name
    with lock_folder(folder, "import"):
        _check_free(folder, overwrite, is_model_folder(folder), "a model folder")
        _import(path, source, folder, tokenizer, vocabulary_from, onto, console)
    return folder


def _import(
    path: Path,
    source: Path,
    folder: Path,
    tokenizer: str | Path | None,
    vocabulary_from: str | Path | None,
    onto: str | Path | None,
    console: Console,
) -> None:
    """Write the model folder for ``path``, whose model is in ``source``."""
    if (source / peft.CONFIG).is_file():
        if onto is None:
            raise ConfigError(f"{path}: is an adapter; name its base run or model with --onto")
        _import_adapter(source, load_model(model_folder(Path(onto), "best", console)), folder)
        return
    if onto is not None:
        raise ConfigError(f"{path}: is not an adapter; --onto requires one")
    if source.suffix == SUFFIX:
        file = GgufFile(source)
        config, tensors = file.read()
        vocabulary = open_tokenizer(tokenizer) if tokenizer else read_tokenizer(file.metadata, source)
        vocabulary.check_lossless(source)
        vocabulary = _fitting(vocabulary, config, path, console)
        ends = ends_in(file.metadata, vocabulary.vocab_size)
        metadata = _chat_metadata(
            lambda: chat_template_of(file.metadata, source), source, vocabulary, console
        )
    else:
        config, tensors = nanogpt.read(source) if source.is_file() else huggingface.read(source)
        vocabulary = _fitting(_vocabulary(source, tokenizer, vocabulary_from, config), config, path, console)
        ends = huggingface.end_ids(source, vocabulary.vocab_size) if source.is_dir() else ()
        metadata = _chat_metadata(lambda: chat_template_in(source), source, vocabulary, console)
    if not ends and not vocabulary.has_end_of_text and source.suffix not in PICKLES:
        console.note(
            f"no token ends generation with this model: it has no {END_OF_TEXT}, and its settings name no end token "
            "(eos_token_id)"
        )
    metadata = replace(metadata, end_token_ids=() if {*ends} == vocabulary.end_ids else ends)
    save_model(folder, _built(config, tensors), vocabulary, metadata)


def _chat_metadata(
    find: Callable[[], tuple[str, Path] | None], path: Path, tokenizer: Tokenizer, console: Console
) -> ModelMetadata:
    """Return metadata with the chat template that ``find`` returns, if there is one and it is supported."""
    try:
        found = find()
        if found is None:
            return NO_METADATA
        content, path = found
        template = ChatTemplate(content)
    except (ConfigError, CheckpointError) as error:
        console.warn(f"{path}: {error}; the model is imported without a chat template")
        return NO_METADATA
    if tokenizer.id_of(template.end_of_turn) is None:
        console.warn(
            f"{path}: ends answers with {template.end_of_turn}, which is not in the vocabulary; the model is imported "
            "without a chat template"
        )
        return NO_METADATA
    return ModelMetadata(chat_template=template.source)


def _import_adapter(adapter: Path, base: ModelFolder, folder: Path) -> None:
    """Write a model folder of ``base`` with an adapter, which is stored separately from its weights."""
    if base.metadata.lora or base.metadata.task:
        raise ConfigError("the base model of an adapter must have neither LoRA nor a head")
    new = peft.new_tokens_of(adapter)
    tokenizer = Tokenizer.load(adapter / TOKENIZER) if new else base.tokenizer
    if tokenizer.vocab_size != base.model.vocab_size + new:
        raise TokenizerError(
            f"{adapter}: is for a model of {tokenizer.vocab_size - new:,} tokens and adds {new}; this one "
            f"has {base.model.vocab_size:,}"
        )
    model = Transformer(replace(base.model.config, vocab_size=tokenizer.vocab_size))
    model.load_state_dict(extend_vocabulary(base.model, tokenizer.vocab_size))
    lora = peft.load_adapter(adapter, model)
    chat = _chat_metadata(lambda: chat_template_in(adapter), adapter, tokenizer, QUIET)
    template = chat.chat_template or base.metadata.chat_template
    save_model(folder, model, tokenizer, ModelMetadata(lora=lora, new_tokens=new, chat_template=template))


def _vocabulary(
    path: Path, tokenizer: str | Path | None, vocabulary_from: str | Path | None, config: ModelConfig
) -> Tokenizer:
    if vocabulary_from:
        # nanoGPT reads its text in Python's default mode: every line end is one character.
        text = read_text(Path(vocabulary_from), "utf-8").replace("\r\n", "\n").replace("\r", "\n")
        return character_tokenizer([text])
    folder = path if path.is_dir() else path.parent
    if tokenizer is None and not any((folder / name).exists() for name in TOKENIZER_FILES):
        raise TokenizerError(
            f"{path}: has no tokenizer beside it; name one with --tokenizer (a tokenizer.json, or a folder with "
            "GPT-2's encoder.json and vocab.bpe), or the text of a character model with --vocabulary-from"
        )
    split_as_qwen2 = tokenizer is None and published_architecture(config)[0] in ("Qwen2", "Qwen3")
    return open_tokenizer(tokenizer or folder, split_as_qwen2)


def _fitting(tokenizer: Tokenizer, config: ModelConfig, path: Path, console: Console) -> Tokenizer:
    """Return ``tokenizer`` with as many entries as the model; a few may be rows without tokens."""
    unused = config.vocab_size - tokenizer.vocab_size
    if not unused:
        return tokenizer
    sizes = f"{path}: the model has {config.vocab_size:,} tokens and the tokenizer {tokenizer.vocab_size:,}"
    if unused < 0:
        beyond = [repr(tokenizer.name_of(i)) for i in range(config.vocab_size, tokenizer.vocab_size)]
        raise TokenizerError(
            f"{sizes}: ids {config.vocab_size:,} to {tokenizer.vocab_size - 1:,} ({listed(beyond)}) have no row in the "
            f"model; name its own tokenizer with --tokenizer, take these tokens out of the tokenizer, or give the "
            f"model rows for them: in transformers, resize_token_embeddings({tokenizer.vocab_size})"
        )
    padded = not config.vocab_size % PADDED_MULTIPLE and unused < MOST_PADDED_ROWS
    if not padded and unused > PADDED_SHARE * config.vocab_size:
        raise TokenizerError(
            f"{sizes}, which is too many for a padded vocabulary; name the model's own tokenizer with --tokenizer"
        )
    console.warn(
        f"{unused} rows of the model's vocabulary have no token; they get the names <|unused_N|> and are never "
        "generated"
    )
    return tokenizer.with_unused(config.vocab_size)
