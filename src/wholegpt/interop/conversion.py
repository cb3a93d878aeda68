"""Models out to other programs, with the proof that they are the same there, and in from them."""

import glob
import tempfile
from dataclasses import dataclass, field, replace
from enum import StrEnum
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
from wholegpt.console import Console
from wholegpt.data import read_text
from wholegpt.data.chat.template import ChatTemplate
from wholegpt.errors import CheckpointError, ConfigError, RunError, TokenizerError
from wholegpt.files import lock_folder, write_folder_atomic, write_json_atomic, write_text_atomic
from wholegpt.interop import gguf, huggingface, nanogpt, peft
from wholegpt.interop.gguf import TensorType
from wholegpt.interop.gguf_tokenizer import read_tokenizer
from wholegpt.interop.parity_report import MOST_TOKENS, ForeignModel, Logits, ParityReport, compare, encoder
from wholegpt.interop.sidecar import chat_template_in
from wholegpt.interop.source import model_in
from wholegpt.model import TokenModel, Transformer
from wholegpt.model.heads import extend_vocabulary
from wholegpt.model.lora import base_tensors, merge, remove_lora
from wholegpt.settings.choices import Positions
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
"""The file of an export that lists its files and its parity reports; earlier versions named it otherwise."""
PADDED_SHARE = 0.25
"""Of a vocabulary that may be rows without tokens, as published models have that are padded to a round size."""
PADDED_MULTIPLE, MOST_PADDED_ROWS = 64, 256
"""Of a small vocabulary more may be: up to the next multiple of 64, 128 or 256."""


class Format(StrEnum):
    """What a model can be exported to."""

    huggingface = "huggingface"
    gguf = "gguf"
    peft = "peft"
    """The LoRA of a model alone."""


HUGGINGFACE_TOLERANCE = 2e-5
"""Largest logit difference allowed, as a share of the largest logit or of 1: rounding in float32."""
TOLERANCES = {TensorType.f32: 2e-3, TensorType.f16: 1e-2, TensorType.q8_0: 1e-1}
"""The same of GGUF, whose GELU llama.cpp looks up in 16 bits; docs/interoperability.md has measured ones."""


@dataclass(frozen=True)
class Export:
    """What an export came to."""

    path: Path
    """The folder of the export."""
    files: list[Path]
    parity_reports: list[ParityReport]
    """One for each program that opened it."""
    unchecked: list[str] = field(default_factory=list)
    """What could not be checked, and why."""

    def to_json(self) -> dict[str, Any]:
        """What ``wholegpt export --json`` prints, and ``parity_reports.json`` holds."""
        return {
            "path": str(self.path),
            "files": [file.name for file in self.files],
            "parity_reports": [report.to_json() for report in self.parity_reports],
            "unchecked": self.unchecked,
        }


def export_model(
    run: str | Path,
    to: Format | str,
    out: str | Path | None = None,
    *,
    tensor_type: TensorType | str = TensorType.f32,
    checkpoint: str = "best",
    overwrite: bool = False,
    console: Console | None = None,
) -> Export:
    """Write a run's or model folder's model for other programs, and prove that it is the same model there.

    The export goes to the folder ``out`` (``RUN-huggingface``, ``RUN-gguf-TYPE`` or ``RUN-peft`` unless given), whole
    or not at all. ``tensor_type`` is how GGUF stores matrices. To ``peft`` goes the LoRA alone, for the model that the
    run began from, with the rows of new tokens. Raises ``ConfigError`` naming the settings that the format cannot
    express, ``CheckpointError`` where the measured difference exceeds the tolerance.
    """
    console, format_ = console or Console(), chosen(Format, to, "to")
    stored = chosen(TensorType, tensor_type, "type")
    if stored is not TensorType.f32 and format_ is not Format.gguf:
        raise ConfigError(f"type {stored} is for gguf; {format_} exports are in 32 bits")
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
    """Write the export into ``folder``, in place of the files that are its ``own``."""
    whole = source.resolve()
    loaded = load_model(model_folder(source, checkpoint, console))
    lora, template = loaded.metadata.lora, loaded.metadata.chat_template
    if format_ is Format.peft and lora is None:
        raise ConfigError(f"{source}: has no LoRA; `wholegpt finetune --lora.rank 8` trains one")
    if loaded.metadata.control:
        console.warn(
            f"other programs do not know what the model can be asked for ({listed(sorted(loaded.metadata.control))}): "
            "there, write the line before a text yourself"
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
    """The model with its LoRA merged and without the head of a task, which other programs do not have."""
    if loaded.metadata.lora:
        merge(loaded.model)
        remove_lora(loaded.model)
    if loaded.metadata.task is None:
        return ModelFolder(loaded.model, loaded.tokenizer)
    console.note(
        f"the head for {loaded.metadata.task.kind} stays here; what is exported is the language model"
    )
    plain = Transformer(loaded.model.config)
    tensors = loaded.model.state_dict()
    plain.load_state_dict({name: tensors[name] for name in plain.state_dict()})
    return ModelFolder(plain, loaded.tokenizer)


T = TypeVar("T", bound=StrEnum)


def chosen(kind: type[T], value: str, option: str) -> T:
    """The member of ``kind`` that is called ``value``. Raises ``ConfigError`` naming the ``option`` and its values."""
    if value not in list(kind):
        raise ConfigError(f"{option} is '{value}'; {nearest(value, list(kind))}")
    return kind(value)


def _check_free(folder: Path, overwrite: bool, ours: bool, what: str) -> None:
    """Raise ``RunError`` for a folder that may not be replaced: ``ours`` says whether it is ``what`` it has to be."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not ours:
        raise RunError(f"{folder}: exists and is not {what}; name another --out")
    if not overwrite:
        raise RunError(f"{folder}: exists; name another --out, or add --overwrite to replace it")


def _files_of_export(folder: Path) -> list[str]:
    """Names of the files that an export wrote into ``folder``; none where it is no export."""
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
        with console.working("opening the export with transformers"):
            return [own, huggingface.open_with_transformers(target)], []
    except ImportError as error:
        return [own], [f"transformers did not open it ({error}): pip install transformers, and export again"]


def _reopened_adapter(
    target: Path, loaded: ModelFolder, console: Console
) -> tuple[list[ForeignModel], list[str]]:
    """The adapter on the model without it, here and by ``peft``."""
    head = loaded.metadata.task
    if head:
        console.note(f"the head for {head.kind} stays here; the adapter changes the language model alone")
    base = Transformer(loaded.model.config)
    tensors = {name: tensor.clone() for name, tensor in base_tensors(loaded.model).items()}
    base.load_state_dict({name: tensors[name] for name in base.own_tensors()}, strict=False)
    new = loaded.metadata.new_tokens
    with torch.no_grad():  # what the adapter brings is not there before
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
            opened, unchecked = [], [f"peft cannot open it, as transformers does not have the model: {error}"]
    peft.load_adapter(target, base)
    own = ForeignModel("wholegpt itself", _logits(base.eval()), encoder(Tokenizer.load(target / TOKENIZER)))
    return [own, *opened], unchecked


def _reopened_gguf(file: Path, loaded: ModelFolder, console: Console) -> tuple[list[ForeignModel], list[str]]:
    config = loaded.model.config
    tensors, encode = gguf.read(file, config), encoder(read_tokenizer(file))
    own = ForeignModel("the gguf library", _logits(_built(config, tensors)), encode)
    try:
        with console.working("opening the export with llama.cpp"):
            return [own, gguf.open_with_llama_cpp(file, min(config.context_length, MOST_TOKENS))], []
    except ImportError as error:
        missing = (
            f"llama.cpp did not open it ({error}), so its own computation and tokenizer were not checked: "
            "pip install llama-cpp-python, and export again"
        )
        return [own], [missing]


def _refuse_changed(model: TokenModel, tensors: dict[str, Tensor]) -> None:
    """Raise ``CheckpointError`` where a tensor came back with other bits."""
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
    """Make a model folder of a model from elsewhere: a folder that ``transformers`` saved, or nanoGPT's ``ckpt.pt``.

    Or of a LoRA adapter that ``peft`` or ``export_model`` saved, together with the model ``onto`` which it is put.

    The folder is ``out``, ``models/NAME`` unless given. The tokenizer is the one beside the model, or ``tokenizer``
    (a tokenizer.json, or a folder with GPT-2's two files), or the characters of the text ``vocabulary_from``, as
    nanoGPT numbers them. Raises ``CheckpointError`` for what is damaged, unknown or contradicts itself,
    ``TokenizerError`` for a tokenizer that is missing or not the model's.
    """
    console = console or Console()
    path = Path(path)
    if tokenizer and vocabulary_from:
        raise ConfigError("tokenizer and vocabulary_from are given; a model has one vocabulary")
    source = model_in(path)
    name = source.parent.resolve().name if source.is_file() else source.resolve().name
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
    """Write the model folder of what is in ``path``, whose model is in ``source``."""
    if (source / peft.CONFIG).is_file():
        if onto is None:
            raise ConfigError(f"{path}: is an adapter; name the run or model that it is for by --onto")
        _import_adapter(source, load_model(model_folder(Path(onto), "best", console)), folder)
        return
    if onto is not None:
        raise ConfigError(f"{path}: is no adapter; --onto is for those")
    config, tensors = nanogpt.read(source) if source.is_file() else huggingface.read(source)
    vocabulary = _fitting(_vocabulary(source, tokenizer, vocabulary_from, config), config, path, console)
    metadata = _chat_metadata(source, vocabulary, console)
    if source.is_dir():
        ends = huggingface.end_ids(source, vocabulary.vocab_size)
        metadata = replace(metadata, end_token_ids=() if {*ends} == vocabulary.end_ids else ends)
        if not ends and not vocabulary.has_end_of_text:
            console.note(
                f"no token ends the texts of this model: it has no {END_OF_TEXT}, and neither config.json nor "
                "generation_config.json gives an eos_token_id"
            )
    save_model(folder, _built(config, tensors), vocabulary, metadata)


def _chat_metadata(source: Path, tokenizer: Tokenizer, console: Console) -> ModelMetadata:
    """How the model's conversations are written, where that is said beside it and can be done here."""
    path = source
    try:
        found = chat_template_in(source)
        if found is None:
            return NO_METADATA
        content, path = found
        template = ChatTemplate(content)
    except (ConfigError, CheckpointError) as error:
        console.warn(f"{path}: {error}; the model is imported without a chat template")
        return NO_METADATA
    unknown = [name for name in template.special_tokens if tokenizer.id_of(name) is None]
    if unknown:
        console.warn(
            f"{path}: writes {listed(unknown)}, which no token is; the model is imported without a chat template"
        )
        return NO_METADATA
    return ModelMetadata(chat_template=template.source)


def _import_adapter(adapter: Path, base: ModelFolder, folder: Path) -> None:
    """Write a model folder of ``base`` with an adapter on it, which stays apart from its weights."""
    if base.metadata.lora or base.metadata.task:
        raise ConfigError("the model that an adapter is put on is one without LoRA and without a head")
    new = peft.new_tokens_of(adapter)
    tokenizer = Tokenizer.load(adapter / TOKENIZER) if new else base.tokenizer
    if tokenizer.vocab_size != base.model.vocab_size + new:
        raise TokenizerError(
            f"{adapter}: is for a model of {tokenizer.vocab_size - new:,} tokens, to which it brings {new}; this one "
            f"has {base.model.vocab_size:,}"
        )
    model = Transformer(replace(base.model.config, vocab_size=tokenizer.vocab_size))
    model.load_state_dict(extend_vocabulary(base.model, tokenizer.vocab_size))
    lora = peft.load_adapter(adapter, model)
    chat = _chat_metadata(adapter, tokenizer, Console(quiet=True))
    template = chat.chat_template or base.metadata.chat_template
    save_model(folder, model, tokenizer, ModelMetadata(lora=lora, new_tokens=new, chat_template=template))


def _vocabulary(
    path: Path, tokenizer: str | Path | None, vocabulary_from: str | Path | None, config: ModelConfig
) -> Tokenizer:
    if vocabulary_from:
        # nanoGPT reads its text as Python does by default: every end of a line is one character.
        text = read_text(Path(vocabulary_from), "utf-8").replace("\r\n", "\n").replace("\r", "\n")
        return character_tokenizer([text])
    folder = path if path.is_dir() else path.parent
    if tokenizer is None and not any((folder / name).exists() for name in TOKENIZER_FILES):
        raise TokenizerError(
            f"{path}: has no tokenizer beside it; name one with --tokenizer (a tokenizer.json, or a folder with "
            "GPT-2's encoder.json and vocab.bpe), or the text of a character model with --vocabulary-from"
        )
    return open_tokenizer(tokenizer or folder, tokenizer is None and config.positions is Positions.rotary)


def _fitting(tokenizer: Tokenizer, config: ModelConfig, path: Path, console: Console) -> Tokenizer:
    """``tokenizer`` with as many entries as the model has; a few may be rows that no token has."""
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
            f"{sizes}, which is more than a padded vocabulary explains; name the model's own tokenizer with --tokenizer"
        )
    console.warn(
        f"{unused} rows of the model's vocabulary have no token; they get the names <|unused_N|> and are never "
        "generated"
    )
    return tokenizer.with_unused(config.vocab_size)
