"""GPT-1, GPT-2, Llama, Mistral, Qwen2 and Qwen3 in ``transformers``: a table of tensor names and one of settings.

Export reads a table from left to right, import from right to left.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from wholegpt.errors import CheckpointError, ConfigError
from wholegpt.interop.foreign import completed, number_in, whole_number_in
from wholegpt.interop.names import LAYER, Table, both, name
from wholegpt.settings.choices import Bias, Embeddings, FeedForward, Positions, RotaryScaling
from wholegpt.settings.presets import gpt1, gpt2, llama, modern, published_architecture
from wholegpt.settings.schema import ModelConfig
from wholegpt.settings.validation import ROTARY_SCALING_FIELDS, complete_model


@dataclass(frozen=True)
class Architecture:
    """A published architecture in the format of ``transformers``."""

    name: str
    """Name in ``presets.published_architecture``."""
    model_type: str
    class_name: str
    base: ModelConfig
    """A config of this architecture, whose sizes are replaced."""
    sizes: Mapping[str, str]
    """Our field -> theirs, for numeric fields."""
    activation: str
    """Their field for the activation of the feed-forward layer."""
    activations: Mapping[str, FeedForward]
    """Meaning of its values; export writes the first value with the right meaning."""
    dropouts: tuple[str, ...]
    """Their dropout probabilities, which are a single one here; import uses the first."""
    defaults: Mapping[str, Any]
    """Default of each field that ``config.json`` leaves out, from their config class."""
    prefix: str
    """Prefix of most tensor names; published files may leave it out."""
    table: Table
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Alternative names of their fields."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Their fields that change the computation, with the only supported value, their default."""
    nullable: Mapping[str, str] = field(default_factory=dict)
    """Their sizes that may be null, and the size that then applies; empty if it follows from the others."""
    constants: tuple[str, ...] = ()
    """Name suffixes of tensors without parameters, in files of older versions."""


_GPT_SIZES = {
    "vocab_size": "vocab_size",
    "context_length": "n_positions",
    "n_layers": "n_layer",
    "d_model": "n_embd",
    "n_heads": "n_head",
    "norm_epsilon": "layer_norm_epsilon",
}
_GPT_DEFAULTS = {
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "layer_norm_epsilon": 1e-5,
    "resid_pdrop": 0.1,
    "tie_word_embeddings": True,
}
_GPT_ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
_GPT_DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
_UNEMBEDDING = name("unembedding.weight", "lm_head.weight")
_OURS, _GPT, _LLAMA = f"blocks.{LAYER}", f"transformer.h.{LAYER}", f"model.layers.{LAYER}"
_GPT_BLOCK = (
    *both(f"{_OURS}.attention_norm", f"{_GPT}.ln_1"),
    *both(f"{_OURS}.feed_forward_norm", f"{_GPT}.ln_2"),
    *both(f"{_OURS}.attention.query_key_value", f"{_GPT}.attn.c_attn", transposed=True),
    *both(f"{_OURS}.attention.output", f"{_GPT}.attn.c_proj", transposed=True),
    *both(f"{_OURS}.feed_forward.expand", f"{_GPT}.mlp.c_fc", transposed=True),
    *both(f"{_OURS}.feed_forward.output", f"{_GPT}.mlp.c_proj", transposed=True),
)

GPT1 = Architecture(
    name="GPT-1",
    model_type="openai-gpt",
    class_name="OpenAIGPTLMHeadModel",
    base=gpt1(),
    sizes=_GPT_SIZES,
    activation="afn",
    # transformers calls the tanh approximation gelu in this model.
    activations={"gelu": FeedForward.gelu_tanh},
    dropouts=_GPT_DROPOUTS,
    defaults={**_GPT_DEFAULTS, "vocab_size": 40_478, "n_positions": 512, "afn": "gelu"},
    aliases=_GPT_ALIASES,
    prefix="transformer.",
    table=(
        name("token_embedding.weight", "transformer.tokens_embed.weight"),
        name("position_embedding.weight", "transformer.positions_embed.weight"),
        *_GPT_BLOCK,
        _UNEMBEDDING,
    ),
    constants=(".attn.bias", "position_ids"),
)
GPT2 = Architecture(
    name="GPT-2",
    model_type="gpt2",
    class_name="GPT2LMHeadModel",
    base=gpt2(),
    sizes={**_GPT_SIZES, "d_ff": "n_inner"},
    activation="activation_function",
    activations={
        "gelu_new": FeedForward.gelu_tanh,
        "gelu_pytorch_tanh": FeedForward.gelu_tanh,
        "gelu_python_tanh": FeedForward.gelu_tanh,
        "gelu_accurate": FeedForward.gelu_tanh,
        "gelu_fast": FeedForward.gelu_tanh,
        "gelu": FeedForward.gelu,
        "gelu_python": FeedForward.gelu,
    },
    dropouts=_GPT_DROPOUTS,
    defaults={
        **_GPT_DEFAULTS,
        "vocab_size": 50_257,
        "n_positions": 1024,
        "n_inner": None,
        "activation_function": "gelu_new",
        "eos_token_id": 50_256,
    },
    aliases=_GPT_ALIASES,
    prefix="transformer.",
    table=(
        name("token_embedding.weight", "transformer.wte.weight"),
        name("position_embedding.weight", "transformer.wpe.weight"),
        *_GPT_BLOCK,
        *both("final_norm", "transformer.ln_f"),
        _UNEMBEDDING,
    ),
    fixed={
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    },
    nullable={"n_inner": ""},
    constants=(".attn.bias", ".attn.masked_bias"),
)
_LLAMA_SIZES = {
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "n_layers": "num_hidden_layers",
    "d_model": "hidden_size",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "d_head": "head_dim",
    "d_ff": "intermediate_size",
    "norm_epsilon": "rms_norm_eps",
}
_LLAMA_DEFAULTS = {
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
    "rope_theta": 10_000.0,
}
_LLAMA_TABLE = (
    name("token_embedding.weight", "model.embed_tokens.weight"),
    name(f"{_OURS}.attention_norm.weight", f"{_LLAMA}.input_layernorm.weight"),
    *(
        name(
            f"{_OURS}.attention.query_key_value.{kind}",
            *(f"{_LLAMA}.self_attn.{part}_proj.{kind}" for part in ("q", "k", "v")),
        )
        for kind in ("weight", "bias")
    ),
    name(f"{_OURS}.attention.query_norm.weight", f"{_LLAMA}.self_attn.q_norm.weight"),
    name(f"{_OURS}.attention.key_norm.weight", f"{_LLAMA}.self_attn.k_norm.weight"),
    name(f"{_OURS}.attention.output.weight", f"{_LLAMA}.self_attn.o_proj.weight"),
    name(f"{_OURS}.feed_forward_norm.weight", f"{_LLAMA}.post_attention_layernorm.weight"),
    name(f"{_OURS}.feed_forward.gate.weight", f"{_LLAMA}.mlp.gate_proj.weight"),
    name(f"{_OURS}.feed_forward.expand.weight", f"{_LLAMA}.mlp.up_proj.weight"),
    name(f"{_OURS}.feed_forward.output.weight", f"{_LLAMA}.mlp.down_proj.weight"),
    name("final_norm.weight", "model.norm.weight"),
    _UNEMBEDDING,
)
"""The tensors of Llama and of the architectures that extend it; a model has those that its config asks for."""

LLAMA = Architecture(
    name="Llama",
    model_type="llama",
    class_name="LlamaForCausalLM",
    base=llama(),
    sizes=_LLAMA_SIZES,
    activation="hidden_act",
    activations={"silu": FeedForward.swiglu, "swish": FeedForward.swiglu},
    dropouts=("attention_dropout",),
    defaults={
        **_LLAMA_DEFAULTS,
        "vocab_size": 32_000,
        "max_position_embeddings": 2048,
        "intermediate_size": 11_008,
        "eos_token_id": 2,
    },
    prefix="model.",
    table=_LLAMA_TABLE,
    fixed={"attention_bias": False, "mlp_bias": False},
    nullable={"num_key_value_heads": "num_attention_heads", "head_dim": ""},
    constants=(".rotary_emb.inv_freq",),
)
MISTRAL = replace(
    LLAMA,
    model_type="mistral",
    class_name="MistralForCausalLM",
    defaults={
        **_LLAMA_DEFAULTS,
        "vocab_size": 32_000,
        "max_position_embeddings": 131_072,
        "intermediate_size": 14_336,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
        "eos_token_id": 2,
    },
    fixed={},
    nullable={"head_dim": ""},
)
"""Llama with a sliding window. Without one it is the same architecture, and is exported as Llama."""
_QWEN_DEFAULTS = {
    **_LLAMA_DEFAULTS,
    "vocab_size": 151_936,
    "max_position_embeddings": 32_768,
    "num_key_value_heads": 32,
    "intermediate_size": 22_016,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
QWEN2 = replace(
    LLAMA,
    name="Qwen2",
    model_type="qwen2",
    class_name="Qwen2ForCausalLM",
    base=replace(llama(), bias=Bias.query_key_value),
    defaults=_QWEN_DEFAULTS,
    fixed={},
)
QWEN3 = replace(
    LLAMA,
    name="Qwen3",
    model_type="qwen3",
    class_name="Qwen3ForCausalLM",
    base=modern(),
    defaults={**_QWEN_DEFAULTS, "head_dim": 128},
    fixed={"attention_bias": False},
    nullable={"num_key_value_heads": "num_attention_heads"},
)
ARCHITECTURES = (GPT1, GPT2, LLAMA, MISTRAL, QWEN2, QWEN3)


def architecture_of(config: ModelConfig) -> Architecture:
    """Return the architecture of ``config``. Raises ``ConfigError`` naming the settings that none supports."""
    nearest, differing = published_architecture(config)
    if differing:
        values = [f"{name} = {getattr(config, name.removeprefix('model.'))}" for name in differing]
        raise ConfigError(
            f"other programs cannot open this model: {nearest}, the nearest architecture, does not have "
            f"{', '.join(values)}"
        )
    return next(one for one in ARCHITECTURES if one.name == nearest)


def architecture_named(content: Mapping[str, Any], path: Path) -> Architecture:
    """Return the architecture that a ``config.json`` names. Raises ``CheckpointError`` if it is unknown."""
    for one in ARCHITECTURES:
        if content.get("model_type") == one.model_type:
            return one
    if "format_version" in content:
        raise CheckpointError(f"{path.parent}: is already a model folder of wholegpt; use it as it is")
    known = ", ".join(one.model_type for one in ARCHITECTURES)
    raise CheckpointError(
        f"{path}: model_type is {content.get('model_type')!r}; the supported architectures are {known}"
    )


def to_their_config(architecture: Architecture, config: ModelConfig) -> dict[str, Any]:
    """Return the settings under their names."""
    config = complete_model(config)
    activation = next(name for name, ours in architecture.activations.items() if ours is config.feed_forward)
    result = {
        "architectures": [architecture.class_name],
        "model_type": architecture.model_type,
        **{theirs: getattr(config, ours) for ours, theirs in architecture.sizes.items()},
        architecture.activation: activation,
        **architecture.fixed,
        **dict.fromkeys(architecture.dropouts, config.dropout),
        "tie_word_embeddings": config.embeddings is Embeddings.tied,
        "dtype": "float32",
    }
    if "n_positions" in result:
        result["n_ctx"] = config.context_length  # required by llama.cpp's converter
    if config.positions is Positions.rotary:
        scaling = {
            "rope_type": _ROPE_TYPES[config.rotary_scaling],
            **{
                _ROPE_NAMES[name]: getattr(config, name)
                for name in ROTARY_SCALING_FIELDS[config.rotary_scaling]
            },
        }
        # Versions before 5 read rope_theta and rope_scaling.
        result["rope_theta"] = config.rotary_base
        result["rope_parameters"] = {**scaling, "rope_theta": config.rotary_base}
        if config.rotary_scaling is not RotaryScaling.none:
            result["rope_scaling"] = scaling
    return result


_ROPE_TYPES = {
    RotaryScaling.none: "default",
    RotaryScaling.linear: "linear",
    RotaryScaling.llama3: "llama3",
}
_ROPE_NAMES = {
    "rotary_factor": "factor",
    "rotary_low_freq_factor": "low_freq_factor",
    "rotary_high_freq_factor": "high_freq_factor",
    "rotary_original_context": "original_max_position_embeddings",
}
"""Our settings of rotary scaling -> theirs."""


def from_their_config(architecture: Architecture, content: Mapping[str, Any], path: Path) -> ModelConfig:
    """Return the config from a ``config.json``. Raises ``CheckpointError`` naming an unsupported field."""
    content = with_defaults(architecture, content)
    for name_there, value in {**architecture.fixed, **_NEVER_SET}.items():
        given = content.get(name_there, value)
        if given != value and (given or value):  # an empty object is equivalent to null
            raise CheckpointError(
                f"{path}: {name_there} is {given!r}; only models in which it is {value!r} can be imported"
            )
    activation = content[architecture.activation]
    if not isinstance(activation, str) or activation not in architecture.activations:
        raise CheckpointError(
            f"{path}: {architecture.activation} is {activation!r}; expected {' or '.join(architecture.activations)}"
        )
    tied = content["tie_word_embeddings"]
    if not isinstance(tied, bool):
        raise CheckpointError(f"{path}: tie_word_embeddings is {tied!r}; expected true or false")
    changes: dict[str, Any] = {
        "feed_forward": architecture.activations[activation],
        "embeddings": Embeddings.tied if tied else Embeddings.untied,
        "dropout": number_in(content, architecture.dropouts[0], path),
    }
    for ours, theirs in architecture.sizes.items():
        if content[theirs] is None and theirs in architecture.nullable:
            theirs = architecture.nullable[theirs]
        changes[ours] = number_in(content, theirs, path) if theirs else 0
    if architecture.base.positions is Positions.rotary:
        changes |= _rotary_settings(content, path)
        if "sliding_window" in architecture.defaults:
            _refuse_windows(content, path)
    return completed(architecture.base, changes, path)


_NEVER_SET = {"per_layer_config": None, "quantization_config": None, "is_encoder_decoder": False}
"""Fields of all their models that change the computation, with the only supported value."""


def with_defaults(architecture: Architecture, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a ``config.json`` with the published default of each missing field, and without aliases."""
    named = {name: value for name, value in content.items() if name not in architecture.aliases}
    other = {
        architecture.aliases[name]: value for name, value in content.items() if name in architecture.aliases
    }
    return {**architecture.defaults, **named, **other}


def _rotary_settings(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the base and the scaling of the rotary positions, as ``transformers`` reads them.

    ``rope_scaling`` is the name of ``rope_parameters`` before version 5 and takes precedence; ``rope_theta``
    in either takes precedence over the top-level one, and ``original_max_position_embeddings`` at the top level over
    the nested one.
    """
    part = "rope_scaling" if content.get("rope_scaling") else "rope_parameters"
    rope = content.get(part) or {}
    kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, Mapping) else None
    if not isinstance(rope, Mapping) or kind not in _ROPE_TYPES.values():
        raise CheckpointError(
            f"{path}: {part} is of the kind {kind!r}; only {', '.join(_ROPE_TYPES.values())} rotary positions are "
            "supported"
        )
    nested = [name for name, value in rope.items() if isinstance(value, Mapping)]
    if nested:
        raise CheckpointError(
            f"{path}: {part} are given for {nested[0]} separately; only one kind of rotary positions is supported"
        )
    length = _ROPE_NAMES["rotary_original_context"]
    rope = {length: content["max_position_embeddings"], **content, **rope}
    rope[length] = content.get(length, rope[length])
    if rope.get("partial_rotary_factor") not in (None, 1):
        raise CheckpointError(
            f"{path}: partial_rotary_factor is not 1; only rotation of whole heads is supported"
        )
    scaling = next(ours for ours, theirs in _ROPE_TYPES.items() if theirs == kind)
    fields = {name: number_in(rope, _ROPE_NAMES[name], path) for name in ROTARY_SCALING_FIELDS[scaling]}
    return {"rotary_base": number_in(rope, "rope_theta", path), "rotary_scaling": scaling, **fields}


def _refuse_windows(content: Mapping[str, Any], path: Path) -> None:
    """Raise ``CheckpointError`` if the attention of some layer sees less than the whole context."""
    layers, window = whole_number_in(content, "num_hidden_layers", path), content["sliding_window"]
    if "use_sliding_window" in content:  # Qwen: a switch, and kinds of layers
        kinds = content.get("layer_types")
        if kinds is not None and kinds != ["full_attention"] * layers:
            raise CheckpointError(
                f"{path}: layer_types is {kinds!r}; expected 'full_attention' for each of {layers:,} layers"
            )
        if kinds is not None or not content["use_sliding_window"] or content["max_window_layers"] >= layers:
            return
    context = content["max_position_embeddings"]
    if window is not None and window < context:
        raise CheckpointError(
            f"{path}: sliding_window is {window!r}, less than max_position_embeddings, {context!r}; only attention to "
            f"the whole context is supported. With max_position_embeddings {window!r} in that file, the model is "
            "imported with this context length, within which the window hides nothing"
        )
