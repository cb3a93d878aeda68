"""Export to GGUF files for llama.cpp, with the ``gguf`` library."""

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
from wholegpt.interop.architectures import architecture_of
from wholegpt.interop.gguf_architectures import GGUF_ARCHITECTURES, GgufArchitecture
from wholegpt.interop.gguf_rotary import FREQUENCY_FACTORS, check_recoverable, frequency_factors
from wholegpt.interop.gguf_tokenizer import add_ends, add_tokenizer
from wholegpt.interop.names import names_of, to_theirs, with_biases
from wholegpt.interop.parity_report import ForeignModel
from wholegpt.interop.sidecar import without_special_names
from wholegpt.model import TokenModel
from wholegpt.settings.choices import Bias, FeedForward, RotaryScaling
from wholegpt.settings.schema import ModelConfig
from wholegpt.settings.validation import complete_model
from wholegpt.tokenizers import Tokenizer

if TYPE_CHECKING:
    from gguf import GGUFWriter


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

    config, architecture = _expressible(model.config)
    writer = gguf.GGUFWriter(path, architecture.name)
    _add_config(writer, config)
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[tensor_type]])
    add_tokenizer(writer, tokenizer)
    add_ends(writer, tokenizer, chat_template)
    if chat_template:
        writer.add_chat_template(without_special_names(chat_template))
    if config.rotary_scaling is RotaryScaling.llama3:
        writer.add_tensor(FREQUENCY_FACTORS, frequency_factors(config).numpy())
    names = names_of(architecture.table, config)
    for their_name, tensor in to_theirs(model.own_tensors(), names, config).items():
        tensor = architecture.reordered(their_name, tensor, config)
        stored = gguf.GGMLQuantizationType[_stored_as(their_name, tensor, tensor_type).upper()]
        writer.add_tensor(their_name, gguf.quants.quantize(tensor.numpy(), stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


_FILE_TYPES = {TensorType.f32: "ALL_F32", TensorType.f16: "MOSTLY_F16", TensorType.q8_0: "MOSTLY_Q8_0"}


def _expressible(config: ModelConfig) -> tuple[ModelConfig, GgufArchitecture]:
    """Return the config to export, and its architecture in GGUF."""
    published = architecture_of(config)
    found = [one for one in GGUF_ARCHITECTURES if one.published is published]
    if not found:
        names = ", ".join(one.published.name for one in GGUF_ARCHITECTURES)
        raise ConfigError(f"llama.cpp has no {published.name} architecture; it opens {names} models")
    if config.feed_forward is FeedForward.gelu:
        raise ConfigError(
            "model.feed_forward is gelu, the exact one; llama.cpp's GPT-2 has its tanh approximation (gelu_tanh) only"
        )
    if config.rotary_scaling is RotaryScaling.llama3:
        if not found[0].frequency_factors:
            raise ConfigError(
                f"model.rotary_scaling is llama3; llama.cpp has it in Llama models only, not in {published.name} models"
            )
        check_recoverable(complete_model(config))
    biased = published.base.bias is Bias.all
    return complete_model(with_biases(config) if biased else config), found[0]


def _stored_as(their_name: str, tensor: Tensor, tensor_type: TensorType) -> TensorType:
    if tensor.ndim < 2 or their_name.startswith("position_embd"):
        return TensorType.f32
    if tensor_type is TensorType.q8_0 and tensor.shape[-1] % 32:
        return TensorType.f16  # rows are stored in whole blocks
    return tensor_type


def _add_config(writer: "GGUFWriter", config: ModelConfig) -> None:
    import gguf

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
    if config.rotary_scaling is RotaryScaling.linear:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rotary_factor)
    if config.rotary_scaling is RotaryScaling.llama3:
        writer.add_rope_scaling_orig_ctx_len(config.rotary_original_context)


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
