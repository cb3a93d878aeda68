"""GPT-2, Llama, Qwen2 and Qwen3 in GGUF, the format of llama.cpp: a table of tensor names for each.

Export reads a table from left to right, import from right to left.
"""

from dataclasses import dataclass

from torch import Tensor

from wholegpt.interop.architectures import GPT2, LLAMA, QWEN2, QWEN3, Architecture
from wholegpt.interop.names import LAYER, Table, both, name
from wholegpt.settings.schema import ModelConfig

SUFFIX = ".gguf"
_OURS, _BLOCK = f"blocks.{LAYER}", f"blk.{LAYER}"
_EMBEDDINGS = (
    name("token_embedding.weight", "token_embd.weight"),
    name("unembedding.weight", "output.weight"),
)
_GPT2_TABLE = (
    *_EMBEDDINGS,
    name("position_embedding.weight", "position_embd.weight"),
    *both(f"{_OURS}.attention_norm", f"{_BLOCK}.attn_norm"),
    *both(f"{_OURS}.attention.query_key_value", f"{_BLOCK}.attn_qkv"),
    *both(f"{_OURS}.attention.output", f"{_BLOCK}.attn_output"),
    *both(f"{_OURS}.feed_forward_norm", f"{_BLOCK}.ffn_norm"),
    *both(f"{_OURS}.feed_forward.expand", f"{_BLOCK}.ffn_up"),
    *both(f"{_OURS}.feed_forward.output", f"{_BLOCK}.ffn_down"),
    *both("final_norm", "output_norm"),
)
_LLAMA_TABLE = (
    *_EMBEDDINGS,
    name(f"{_OURS}.attention_norm.weight", f"{_BLOCK}.attn_norm.weight"),
    *(
        name(
            f"{_OURS}.attention.query_key_value.{kind}",
            *(f"{_BLOCK}.attn_{part}.{kind}" for part in ("q", "k", "v")),
        )
        for kind in ("weight", "bias")
    ),
    name(f"{_OURS}.attention.query_norm.weight", f"{_BLOCK}.attn_q_norm.weight"),
    name(f"{_OURS}.attention.key_norm.weight", f"{_BLOCK}.attn_k_norm.weight"),
    name(f"{_OURS}.attention.output.weight", f"{_BLOCK}.attn_output.weight"),
    name(f"{_OURS}.feed_forward_norm.weight", f"{_BLOCK}.ffn_norm.weight"),
    name(f"{_OURS}.feed_forward.gate.weight", f"{_BLOCK}.ffn_gate.weight"),
    name(f"{_OURS}.feed_forward.expand.weight", f"{_BLOCK}.ffn_up.weight"),
    name(f"{_OURS}.feed_forward.output.weight", f"{_BLOCK}.ffn_down.weight"),
    name("final_norm.weight", "output_norm.weight"),
)


@dataclass(frozen=True)
class GgufArchitecture:
    """A published architecture in GGUF."""

    name: str
    """Value of ``general.architecture``."""
    published: Architecture
    table: Table
    interleaved: bool = False
    """Whether each head's rotated pairs of query and key rows are neighbors; elsewhere they are half a head apart."""
    frequency_factors: bool = False
    """Whether llama.cpp reads the factors of ``llama3`` scaling."""

    def reordered(self, their_name: str, tensor: Tensor, config: ModelConfig, back: bool = False) -> Tensor:
        """Return ``tensor`` with the rows of each head as GGUF has them, or ``back`` in our order."""
        part = their_name.split(".")[-2]
        if not self.interleaved or part not in ("attn_q", "attn_k"):
            return tensor
        heads = config.n_heads if part == "attn_q" else config.n_kv_heads
        shape = (heads, -1, 2) if back else (heads, 2, tensor.shape[0] // heads // 2)
        return tensor.unflatten(0, shape).transpose(1, 2).flatten(0, 2).contiguous()


GGUF_ARCHITECTURES = (
    GgufArchitecture("gpt2", GPT2, _GPT2_TABLE),
    GgufArchitecture("llama", LLAMA, _LLAMA_TABLE, interleaved=True, frequency_factors=True),
    GgufArchitecture("qwen2", QWEN2, _LLAMA_TABLE),
    GgufArchitecture("qwen3", QWEN3, _LLAMA_TABLE),
)
