"""Models in the form of Hugging Face ``transformers``: GPT-2, GPT-1 (openai-gpt) and Qwen3, both ways."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from wholegpt.choices import Bias, Embeddings
from wholegpt.config import ModelConfig
from wholegpt.data.chat_template import ChatTemplate
from wholegpt.errors import CheckpointError
from wholegpt.files import write_json_atomic, write_text_atomic
from wholegpt.interop.architectures import (
    Architecture,
    architecture_named,
    architecture_of,
    from_their_config,
    to_their_config,
)
from wholegpt.interop.certificate import ForeignModel
from wholegpt.interop.foreign import open_safetensors, read_object, without_copy
from wholegpt.interop.names import names_of, to_theirs, with_biases
from wholegpt.model import TokenModel
from wholegpt.tokenizers import END_OF_TEXT, Tokenizer

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
CHAT_TEMPLATE = "chat_template.jinja"
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
    ends: dict[str, int] = {}
    if tokenizer.has_end_of_text:
        ends = dict.fromkeys(("bos_token_id", "eos_token_id"), tokenizer.end_of_text_id)
    stops = dict(ends)
    if chat_template and (end := tokenizer.id_of(ChatTemplate(chat_template).end_of_turn)) is not None:
        stops["eos_token_id"] = end  # of an answer
    write_json_atomic(folder / CONFIG, {**to_their_config(architecture, config), **ends})
    write_json_atomic(folder / "generation_config.json", {**stops, "do_sample": True, "temperature": 0.8})
    tokenizer.save(folder / "tokenizer.json")
    if chat_template:
        write_text_atomic(folder / CHAT_TEMPLATE, chat_template)
    special = dict.fromkeys((name.removesuffix("_id") for name in ends), END_OF_TEXT)
    write_json_atomic(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",  # takes tokenizer.json as it stands
            "model_max_length": config.context_length,
            "clean_up_tokenization_spaces": False,
            **special,
        },
    )


def read(folder: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The config, and the tensors in our names and float32, of a model that ``transformers`` or ``write`` saved.

    Raises ``CheckpointError`` for what is missing, damaged, unknown, or contradicts itself.
    """
    content = read_object(folder / CONFIG)
    architecture = architecture_named(content, folder / CONFIG)
    config = from_their_config(architecture, content, folder / CONFIG)
    found = open_safetensors(folder, WEIGHTS, INDEX)
    bare = not any(name.startswith(architecture.prefix) for name in found.shapes)
    tensors = found.renamed(lambda name: _full_name(name, architecture, bare))
    if config.embeddings is Embeddings.tied and UNEMBEDDING in tensors.shapes:
        (embedding,) = next(
            line for line in architecture.table if line.ours == "token_embedding.weight"
        ).theirs
        tensors = without_copy(tensors, UNEMBEDDING, embedding)
    return config, tensors.into_ours(architecture.table, config)


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
