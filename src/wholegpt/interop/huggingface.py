"""Models in the form of Hugging Face ``transformers``: GPT-2, GPT-1 (openai-gpt) and Qwen3, both ways."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from wholegpt.checkpoint import read_object
from wholegpt.data.chat.template import ChatTemplate
from wholegpt.errors import CheckpointError
from wholegpt.files import write_json_atomic, write_text_atomic
from wholegpt.interop.architectures import (
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
from wholegpt.tokenizers import END_OF_TEXT, PADDING, Tokenizer

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PICKLED_WEIGHTS = "pytorch_model.bin"
"""Read where there are no safetensors."""
UNEMBEDDING = "lm_head.weight"


def write(folder: Path, model: TokenModel, tokenizer: Tokenizer, chat_template: str = "") -> None:
    """Write files into ``folder`` that ``AutoModelForCausalLM`` and ``AutoTokenizer`` open.

    Raises ``ConfigError`` naming the settings that no architecture of theirs can express. Dropout is one number
    here and three or one there. A GPT-2 without biases becomes one whose biases are 0.
    """
    architecture = architecture_of(model.config)
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
        if one in tokenizer.special_ids  # transformers makes it one
    }
    write_json_atomic(
        folder / TOKENIZER_CONFIG,
        {
            "tokenizer_class": "PreTrainedTokenizerFast",  # takes tokenizer.json as it stands
            "model_max_length": config.context_length,
            "clean_up_tokenization_spaces": False,
            **names,
        },
    )


def special_ids(tokenizer: Tokenizer) -> dict[str, Any]:
    """The beginning, the end and the padding of texts, as far as there are such tokens, under their names."""
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
    """The tokens that end what a model generates: an answer, where it has a chat template, in place of a document."""
    end = tokenizer.id_of(ChatTemplate(chat_template).end_of_turn) if chat_template else None
    if end is None:
        return sorted(tokenizer.end_ids)
    return [end, *sorted(tokenizer.end_ids - {end, tokenizer.id_of(END_OF_TEXT)})]


def read(folder: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The config, and the tensors in our names and float32, of a model that ``transformers`` or ``write`` saved.

    Raises ``CheckpointError`` for what is missing, damaged, unknown, or contradicts itself.
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
    """The tokens at which ``transformers`` ends a text of the model in ``folder``; none where nothing says so."""
    content = read_object(folder / CONFIG)
    return end_ids_in(
        folder, with_defaults(architecture_named(content, folder / CONFIG), content), vocab_size
    )


def _full_name(name: str, architecture: Architecture, bare: bool) -> str:
    """``name`` with the prefix, where the file is ``bare`` of it; empty for what holds nothing learned."""
    if name.endswith(architecture.constants):
        return ""
    return architecture.prefix + name if bare and name != UNEMBEDDING else name


def open_with_transformers(folder: Path) -> ForeignModel:
    """A folder as ``transformers`` opens it, on the CPU in float32.

    Raises ``ImportError`` where that is not installed or does not load, ``CheckpointError`` where it cannot open
    the folder.
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
    tokenizer.model_max_length = 10**9  # else it warns of texts longer than the model's context

    @torch.inference_mode()
    def logits(token_ids: list[int]) -> Tensor:
        return model(torch.tensor([token_ids])).logits[0]

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    return ForeignModel(program, logits, encode)


@contextlib.contextmanager
def quiet(logging: Any) -> Iterator[None]:
    """Silence: neither notes nor progress bars of ``transformers``."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
