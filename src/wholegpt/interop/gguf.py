"""Export of GPT-2 and Qwen3 architectures to GGUF files for llama.cpp, with the ``gguf`` library."""

import ctypes
import functools
import importlib
from enum import StrEnum
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from wholegpt.errors import CheckpointError, ConfigError
from wholegpt.interop.architectures import GPT2, QWEN3, architecture_of
from wholegpt.interop.gguf_tokenizer import add_ends, add_tokenizer
from wholegpt.interop.names import LAYER, Table, both, name, names_of, to_ours, to_theirs, with_biases
from wholegpt.interop.parity_report import ForeignModel
from wholegpt.interop.sidecar import without_special_names
from wholegpt.model import TokenModel
from wholegpt.settings.choices import Bias, FeedForward
from wholegpt.settings.schema import ModelConfig
from wholegpt.tokenizers import Tokenizer

if TYPE_CHECKING:
    from gguf import GGUFWriter

_OURS, _BLOCK = f"blocks.{LAYER}", f"blk.{LAYER}"
_EMBEDDINGS = (
    name("token_embedding.weight", "token_embd.weight"),
    name("unembedding.weight", "output.weight"),
)
TABLES: dict[str, Table] = {
    GPT2.name: (
        *_EMBEDDINGS,
        name("position_embedding.weight", "position_embd.weight"),
        *both(f"{_OURS}.attention_norm", f"{_BLOCK}.attn_norm"),
        *both(f"{_OURS}.attention.query_key_value", f"{_BLOCK}.attn_qkv"),
        *both(f"{_OURS}.attention.output", f"{_BLOCK}.attn_output"),
        *both(f"{_OURS}.feed_forward_norm", f"{_BLOCK}.ffn_norm"),
        *both(f"{_OURS}.feed_forward.expand", f"{_BLOCK}.ffn_up"),
        *both(f"{_OURS}.feed_forward.output", f"{_BLOCK}.ffn_down"),
        *both("final_norm", "output_norm"),
    ),
    QWEN3.name: (
        *_EMBEDDINGS,
        name(f"{_OURS}.attention_norm.weight", f"{_BLOCK}.attn_norm.weight"),
        name(
            f"{_OURS}.attention.query_key_value.weight",
            *(f"{_BLOCK}.attn_{part}.weight" for part in ("q", "k", "v")),
        ),
        name(f"{_OURS}.attention.query_norm.weight", f"{_BLOCK}.attn_q_norm.weight"),
        name(f"{_OURS}.attention.key_norm.weight", f"{_BLOCK}.attn_k_norm.weight"),
        name(f"{_OURS}.attention.output.weight", f"{_BLOCK}.attn_output.weight"),
        name(f"{_OURS}.feed_forward_norm.weight", f"{_BLOCK}.ffn_norm.weight"),
        name(f"{_OURS}.feed_forward.gate.weight", f"{_BLOCK}.ffn_gate.weight"),
        name(f"{_OURS}.feed_forward.expand.weight", f"{_BLOCK}.ffn_up.weight"),
        name(f"{_OURS}.feed_forward.output.weight", f"{_BLOCK}.ffn_down.weight"),
        name("final_norm.weight", "output_norm.weight"),
    ),
}


class TensorType(StrEnum):
    """Storage type of matrices; vectors and positions are always float32."""

    f32 = "f32"
    f16 = "f16"
    q8_0 = "q8_0"
    """Blocks of 32 weights: eight bits each and a 16-bit scale (8.5 bits per weight)."""


def write(
    path: Path, model: TokenModel, tokenizer: Tokenizer, tensor_type: TensorType, chat_template: str = ""
) -> None:
    """Write one GGUF file.

    Raises ``ConfigError`` naming settings that llama.cpp's architectures do not support, ``TokenizerError``
    for a tokenizer that llama.cpp cannot reproduce.
    """
    import gguf

    config, table = _expressible(model.config)
    writer = gguf.GGUFWriter(path, "gpt2" if table is TABLES[GPT2.name] else "qwen3")
    _add_config(writer, config)
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[tensor_type]])
    add_tokenizer(writer, tokenizer)
    add_ends(writer, tokenizer, chat_template)
    if chat_template:
        writer.add_chat_template(without_special_names(chat_template))
    for their_name, tensor in to_theirs(model.own_tensors(), names_of(table, config), config).items():
        stored = gguf.GGMLQuantizationType[_stored_as(their_name, tensor, tensor_type).upper()]
        writer.add_tensor(their_name, gguf.quants.quantize(tensor.numpy(), stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read(path: Path, config: ModelConfig) -> dict[str, Tensor]:
    """Read the tensors of a file that ``write`` created, under our names and in float32."""
    import gguf

    config, table = _expressible(config)
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}

    def one(their_name: str) -> Tensor:
        tensor = stored[their_name]
        return torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())

    return to_ours(one, names_of(table, config))


_FILE_TYPES = {TensorType.f32: "ALL_F32", TensorType.f16: "MOSTLY_F16", TensorType.q8_0: "MOSTLY_Q8_0"}


def _expressible(config: ModelConfig) -> tuple[ModelConfig, Table]:
    """Return the config to export, and its table of names."""
    architecture = architecture_of(config)
    if architecture.name not in TABLES:
        raise ConfigError(
            f"llama.cpp has no {architecture.name} architecture; it opens GPT-2 and Qwen3 models"
        )
    if config.feed_forward is FeedForward.gelu:
        raise ConfigError(
            "model.feed_forward is gelu, the exact one; llama.cpp's GPT-2 has its tanh approximation (gelu_tanh) only"
        )
    biased = architecture.base.bias is Bias.all
    return (with_biases(config) if biased else config), TABLES[architecture.name]


def _stored_as(their_name: str, tensor: Tensor, tensor_type: TensorType) -> TensorType:
    if tensor.ndim < 2 or their_name.startswith("position_embd"):
        return TensorType.f32
    if tensor_type is TensorType.q8_0 and tensor.shape[-1] % 32:
        return TensorType.f16  # rows are stored in whole blocks
    return tensor_type


def _add_config(writer: "GGUFWriter", config: ModelConfig) -> None:
    writer.add_context_length(config.context_length)
    writer.add_block_count(config.n_layers)
    writer.add_embedding_length(config.d_model)
    writer.add_feed_forward_length(config.d_ff)
    writer.add_head_count(config.n_heads)
    writer.add_vocab_size(config.vocab_size)
    if writer.arch == "gpt2":
        writer.add_layer_norm_eps(config.norm_epsilon)
        return
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_key_length(config.d_head)
    writer.add_value_length(config.d_head)
    writer.add_rope_dimension_count(config.d_head)
    writer.add_rope_freq_base(config.rotary_base)
    writer.add_layer_norm_rms_eps(config.norm_epsilon)


def open_with_llama_cpp(path: Path, context_length: int) -> ForeignModel:
    """Open a file with llama.cpp, with a float32 KV cache for ``context_length`` tokens.

    Raises ``ImportError`` if llama.cpp is missing or does not load, ``CheckpointError`` if it cannot open the
    file.
    """
    try:
        llama_cpp = importlib.import_module("llama_cpp")
    except (OSError, RuntimeError) as error:  # its shared library does not load
        raise ImportError(str(error)) from None
    llama_cpp.llama_log_set(_no_log(llama_cpp), ctypes.c_void_p(0))
    program = f"llama.cpp (llama-cpp-python {llama_cpp.__version__})"
    try:
        model = llama_cpp.Llama(
            str(path),
            n_ctx=context_length,
            logits_all=True,
            type_k=llama_cpp.GGML_TYPE_F32,
            type_v=llama_cpp.GGML_TYPE_F32,
            verbose=False,
        )
    except ValueError as error:
        raise CheckpointError(f"{program} cannot open the export: {error}") from None

    def logits(token_ids: list[int]) -> Tensor:
        model.reset()
        model.eval(token_ids)
        return torch.from_numpy(model.scores[: len(token_ids)].copy())

    def encode(text: str) -> list[int]:
        return model.tokenize(text.encode(), add_bos=False, special=True)

    return ForeignModel(program, logits, encode)


@functools.cache
def _no_log(llama_cpp: ModuleType) -> Any:
    """Return a callback that discards llama.cpp's log; cached, since llama.cpp keeps calling it."""
    return llama_cpp.llama_log_callback(lambda level, text, user_data: None)
