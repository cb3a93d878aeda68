"""Export to and import from Hugging Face ``transformers``."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from wholegpt.checkpoint import read_object
from wholegpt.data.chat.template import ChatTemplate
from wholegpt.errors import CheckpointError, ConfigError
from wholegpt.files import write_json_atomic, write_text_atomic
from wholegpt.interop.architectures import (
    QWEN2,
    Architecture,
    architecture_named,
    architecture_of,
    from_their_config,
    to_their_config,
    with_defaults,
)
from wholegpt.interop.foreign import open_tensors, tied
from wholegpt.interop.names import names_of, to_theirs, with_biases
from wholegpt.interop.parity_report import ForeignModel
from wholegpt.interop.sidecar import (
    CHAT_TEMPLATE,
    GENERATION_CONFIG,
    TOKENIZER_CONFIG,
    end_ids_in,
    without_special_names,
)
from wholegpt.model import TokenModel
from wholegpt.settings.choices import Bias, Embeddings
from wholegpt.settings.schema import ModelConfig
from wholegpt.tokenizers import PADDING, Tokenizer
from wholegpt.tokenizers.published import splits_as_qwen2

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PICKLED_WEIGHTS = "pytorch_model.bin"
"""Used if there are no safetensors."""
UNEMBEDDING = "lm_head.weight"


def write(folder: Path, model: TokenModel, tokenizer: Tokenizer, chat_template: str = "") -> None:
    """Write files into ``folder`` that ``AutoModelForCausalLM`` and ``AutoTokenizer`` open.

    Raises ``ConfigError`` naming settings that no supported architecture has. Dropout is one number here and
    one or three there. A GPT-2 without biases is exported with biases of 0.
    """
    architecture = architecture_of(model.config)
    if architecture is QWEN2 and not splits_as_qwen2(tokenizer):
        raise ConfigError(
            "transformers gives every Qwen2 model Qwen2's split of text into words, which this tokenizer does not "
            "have: it would get other token ids there. Export to gguf, or train with --model.bias none"
        )
    config = with_biases(model.config) if architecture.base.bias is Bias.all else model.config
    tensors = to_theirs(model.own_tensors(), names_of(architecture.table, config), config)
    safetensors.torch.save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    ids = special_ids(tokenizer)
    write_json_atomic(folder / CONFIG, {**to_their_config(architecture, config), **ids})
    generation: dict[str, Any] = {**ids, "do_sample": True, "temperature": 0.8}
    if ends := ends_of_answers(tokenizer, chat_template):
        generation["eos_token_id"] = ends[0] if len(ends) == 1 else ends
    if tokenizer.unused_ids:
        generation["suppress_tokens"] = tokenizer.unused_ids
    write_json_atomic(folder / GENERATION_CONFIG, generation)
    tokenizer.save(folder / "tokenizer.json")
    if chat_template:
        write_text_atomic(folder / CHAT_TEMPLATE, without_special_names(chat_template))
    first = {name: one[0] if isinstance(one, list) else one for name, one in ids.items()}
    names = {
        name.removesuffix("_id"): tokenizer.name_of(one)
        for name, one in first.items()
        if one in tokenizer.special_ids  # transformers would make any named token special
    }
    write_json_atomic(
        folder / TOKENIZER_CONFIG,
        {
            "tokenizer_class": "PreTrainedTokenizerFast",  # loads tokenizer.json unchanged
            "model_max_length": config.context_length,
            "clean_up_tokenization_spaces": False,
            **names,
        },
    )


def special_ids(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the ids of the tokens that start, end and pad texts, as far as they exist, under transformers'
    names.
    """
    ids: dict[str, Any] = {}
    if tokenizer.prefix_ids:
        ids["bos_token_id"] = tokenizer.prefix_ids[0]
    elif tokenizer.has_end_of_text:
        ids["bos_token_id"] = tokenizer.end_of_text_id
    if ends := sorted(tokenizer.end_ids):
        ids["eos_token_id"] = ends[0] if len(ends) == 1 else ends
    if (padding := tokenizer.id_of(PADDING)) is not None:
        ids["pad_token_id"] = padding
    return ids


def ends_of_answers(tokenizer: Tokenizer, chat_template: str) -> list[int]:
    """Return the tokens that end generation: with a chat template, those of an answer instead of a document."""
    end = tokenizer.id_of(ChatTemplate(chat_template).end_of_turn) if chat_template else None
    if end is None:
        return sorted(tokenizer.end_ids)
    document_end = tokenizer.end_of_text_id if tokenizer.has_end_of_text else None
    return [end, *sorted(tokenizer.end_ids - {end, document_end})]


def read(folder: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Read a model that ``transformers`` or ``write`` saved: its config, and tensors under our names in
    float32.

    Raises ``CheckpointError`` for anything missing, damaged, unknown or inconsistent.
    """
    content = read_object(folder / CONFIG)
    architecture = architecture_named(content, folder / CONFIG)
    config = from_their_config(architecture, content, folder / CONFIG)
    found = open_tensors(folder, WEIGHTS, PICKLED_WEIGHTS)
    bare = not any(name.startswith(architecture.prefix) for name in found.shapes)
    tensors = found.renamed(lambda name: _full_name(name, architecture, bare))
    if config.embeddings is Embeddings.tied:
        (embedding,) = next(
            line for line in architecture.table if line.ours == "token_embedding.weight"
        ).theirs
        tensors = tied(tensors, UNEMBEDDING, embedding)
    return config, tensors.into_ours(architecture.table, config)


def end_ids(folder: Path, vocab_size: int) -> tuple[int, ...]:
    """Return the tokens at which ``transformers`` ends generation for the model in ``folder``; empty if
    unspecified.
    """
    content = read_object(folder / CONFIG)
    return end_ids_in(
        folder, with_defaults(architecture_named(content, folder / CONFIG), content), vocab_size
    )


def _full_name(name: str, architecture: Architecture, bare: bool) -> str:
    """Return ``name`` with the prefix that a ``bare`` file leaves out; empty for tensors without parameters."""
    if name.endswith(architecture.constants):
        return ""
    return architecture.prefix + name if bare and name != UNEMBEDDING else name


def open_with_transformers(folder: Path) -> ForeignModel:
    """Open a folder with ``transformers``, on the CPU in float32.

    Raises ``ImportError`` if it is missing or does not load, ``CheckpointError`` if it cannot open the
    folder.
    """
    import transformers

    program = f"transformers {transformers.__version__}"
    with quiet(transformers.utils.logging):
        try:
            model = transformers.AutoModelForCausalLM.from_pretrained(folder).float().eval()
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        except Exception as error:  # anything, in any version
            raise CheckpointError(
                f"{program} cannot open the export: {type(error).__name__}: {error}"
            ) from None
    tokenizer.model_max_length = 10**9  # otherwise it warns of texts longer than the model's context

    @torch.inference_mode()
    def logits(token_ids: list[int]) -> Tensor:
        return model(torch.tensor([token_ids])).logits[0]

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    return ForeignModel(program, logits, encode)


@contextlib.contextmanager
def quiet(logging: Any) -> Iterator[None]:
    """Silence the log and the progress bars of ``transformers``."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
