"""LoRA adapters in the format of Hugging Face ``peft``, for the same model exported to ``transformers``.

New tokens are rows at the end of the vocabulary. Their trained values are in the adapter
(``trainable_token_indices`` of ``peft``), and the base model must already have that many rows, with any
values.

Shapes: I inputs, O outputs, R rank.
"""

import hashlib
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from wholegpt.checkpoint import listed, read_object
from wholegpt.errors import CheckpointError, ConfigError
from wholegpt.files import lock_folder, write_folder_atomic, write_json_atomic
from wholegpt.interop import huggingface
from wholegpt.interop.architectures import architecture_of
from wholegpt.interop.foreign import ForeignTensors, number_in, open_tensors, whole_number_in
from wholegpt.interop.names import Name, names_of, own_shapes, stacked_rows
from wholegpt.interop.parity_report import ForeignModel
from wholegpt.model import TokenModel
from wholegpt.model.lora import LoraLinear, add_lora, base_tensors, lora_layers, remove_lora
from wholegpt.settings.schema import LoraConfig, ModelConfig

CONFIG, WEIGHTS, BASE = "adapter_config.json", "adapter_model.safetensors", "base.json"
PICKLED_WEIGHTS = "adapter_model.bin"
"""Used if there are no safetensors."""
PREFIX = "base_model.model."
ROWS = ".token_adapter.trainable_tokens_delta"
MATRICES = ("token_embedding", "unembedding")
"""Our matrices with one row per token."""
PLAIN = {
    "bias": "none",
    "use_dora": False,
    "use_rslora": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "modules_to_save": None,
    "lora_bias": False,
    "use_qalora": False,
    "use_bdlora": None,
    "target_parameters": None,
    "layer_replication": None,
    "alora_invocation_tokens": None,
    "arrow_config": None,
    "kasa_config": None,
    "monteclora_config": None,
}
"""Their settings that change the computation, with the only supported value."""
DEFAULTS = {"r": 8, "lora_alpha": 8}
"""Defaults of settings missing in ``adapter_config.json``."""
ADDED_TO_THE_MODEL = (True, False, "gaussian", "eva", "orthogonal")
"""Initializations that leave the base weights unchanged."""


def save_adapter(folder: Path, model: TokenModel, config: LoraConfig, new_tokens: int = 0) -> None:
    """Write an adapter into ``folder``, whole or not at all. Raises ``RunError`` if files of these names
    exist.
    """
    with lock_folder(folder, "saving an adapter"):
        write_folder_atomic(folder, lambda target: write_adapter(target, model, config, new_tokens), ())


def write_adapter(folder: Path, model: TokenModel, config: LoraConfig, new_tokens: int = 0) -> None:
    """Write the LoRA of ``model`` with the settings ``config``, merged or not, into ``folder``.

    It includes the last ``new_tokens`` rows of the vocabulary. If transformers does not support the model,
    the layers have our names. Raises ``ConfigError`` without LoRA.
    """
    layers = dict(lora_layers(model))
    if not layers:
        raise ConfigError("the model has no LoRA to save")
    modules = _modules(model.config)
    tensors: dict[str, Tensor] = {}
    for ours, layer in layers.items():
        theirs = modules[ours]
        rows = stacked_rows(model.config) if len(theirs) > 1 else [len(layer.up)]
        for module, up in zip(theirs, layer.up.detach().split(rows), strict=True):
            tensors[f"{module}.lora_A.weight"] = layer.down.detach().clone()
            tensors[f"{module}.lora_B.weight"] = up.contiguous()
    changed = [module.removeprefix(PREFIX) for ours in layers for module in modules[ours]]
    old = model.vocab_size - new_tokens
    matrices = _token_matrices(model.config) if new_tokens else {}
    for ours, theirs in matrices.items():
        weight = model.get_submodule(ours).get_parameter("weight")
        tensors[PREFIX + theirs + ROWS] = weight[old:].detach().clone()
    safetensors.torch.save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    content = {
        **PLAIN,
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": changed,
        "fan_in_fan_out": any(line.transposed for line in _linear(model.config)),
        "inference_mode": True,
        "trainable_token_indices": {
            theirs.rpartition(".")[2]: list(range(old, model.vocab_size)) for theirs in matrices.values()
        }
        or None,
    }
    write_json_atomic(folder / CONFIG, content)
    shapes = {name: list(tensor.shape) for name, tensor in _base(model, old).items()}
    write_json_atomic(folder / BASE, {"sha256": base_hash(model, old), "shapes": shapes})


def new_tokens_of(folder: Path) -> int:
    """Return the number of new tokens in an adapter. Raises ``CheckpointError`` if it is damaged."""
    path = folder / CONFIG
    given = read_object(path).get("trainable_token_indices")
    if not given:
        return 0
    lists = list(given.values()) if isinstance(given, dict) else [given]
    indices = lists[0]
    if not isinstance(indices, list) or not indices or not all(isinstance(number, int) for number in indices):
        raise CheckpointError(f"{path}: trainable_token_indices are not a list of indices")
    if any(one != indices for one in lists) or indices != list(range(indices[0], indices[0] + len(indices))):
        raise CheckpointError(
            f"{path}: trainable_token_indices are not the last tokens, which are all that can be new"
        )
    return len(indices)


def open_with_peft(base: Path, adapter: Path, encode: Callable[[str], list[int]]) -> ForeignModel:
    """Open an ``adapter`` on the model in ``base``, which ``huggingface.write`` wrote, with ``peft`` in
    float32.

    Raises ``ImportError`` if it is missing, ``CheckpointError`` if it cannot open them.
    """
    import peft
    import transformers

    program = f"peft {peft.__version__}"
    with huggingface.quiet(transformers.utils.logging), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            plain: Any = transformers.AutoModelForCausalLM.from_pretrained(base)
            model = peft.PeftModel.from_pretrained(plain.float(), str(adapter)).eval()
        except Exception as error:  # anything, in any version
            raise CheckpointError(
                f"{program} cannot open the adapter: {type(error).__name__}: {error}"
            ) from None

    @torch.inference_mode()
    def logits(token_ids: list[int]) -> Tensor:
        return model(torch.tensor([token_ids])).logits[0]

    return ForeignModel(program, logits, encode)


def load_adapter(folder: Path, model: TokenModel) -> LoraConfig:
    """Put the adapter in ``folder`` on ``model``, replacing an existing one, which must not be merged.

    The rows of its new tokens replace the last ones of ``model``. Raises ``CheckpointError`` for an adapter
    of another model, or with unsupported settings.
    """
    content = read_object(folder / CONFIG)
    for name, value in PLAIN.items():
        if content.get(name, value) not in (value, [], None):
            raise CheckpointError(
                f"{folder / CONFIG}: {name} is {content[name]!r}; only {value!r} can be expressed here"
            )
    if (initialized := content.get("init_lora_weights", True)) not in ADDED_TO_THE_MODEL:
        raise CheckpointError(
            f"{folder / CONFIG}: init_lora_weights is {initialized!r}, which changes the model below the adapter; in "
            "peft, save_pretrained(FOLDER, path_initial_model_for_weight_conversion=INITIAL_ADAPTER) writes an "
            "adapter for the model as it was"
        )
    if content.get("peft_type") != "LORA":
        raise CheckpointError(
            f"{folder / CONFIG}: peft_type is {content.get('peft_type')!r}; expected 'LORA'"
        )
    content = {**DEFAULTS, **content}
    rank = whole_number_in(content, "r", folder / CONFIG)
    alpha = number_in(content, "lora_alpha", folder / CONFIG)
    new = new_tokens_of(folder)
    _check_base(folder, model, new)
    if any(layer.merged for _, layer in lora_layers(model)):
        raise ConfigError("the model has LoRA that is merged; unmerge it first")
    found = open_tensors(folder, WEIGHTS, PICKLED_WEIGHTS)
    rows = _new_rows(found, model.config, new)
    changes = {
        ours: (
            _one_down(found, theirs),
            torch.cat([found.read_float32(f"{module}.lora_B.weight") for module in theirs]),
        )
        for ours, theirs in _changed(found, model.config, rows).items()
    }
    for ours, (down, up) in changes.items():
        outputs, inputs = own_shapes(model.config)[f"{ours}.weight"]
        if (tuple(down.shape), tuple(up.shape)) != ((rank, inputs), (outputs, rank)):
            raise CheckpointError(
                f"{found.where}: the change of {ours} is of {tuple(up.shape)} times {tuple(down.shape)}; "
                f"expected {(outputs, rank)} times {(rank, inputs)}"
            )
    config = LoraConfig(rank, alpha, targets=tuple(changes))
    remove_lora(model)
    add_lora(model, config)
    for ours, (down, up) in changes.items():
        layer = model.get_submodule(ours)
        assert isinstance(layer, LoraLinear)
        layer.down.data, layer.up.data = down.to(layer.down), up.to(layer.up)
    for ours, name in rows.items():
        weight = model.get_submodule(ours).get_parameter("weight")
        weight.data[-new:] = found.read_float32(name).to(weight)
    return config


def base_hash(model: TokenModel, vocab_size: int | None = None) -> str:
    """Return the SHA-256 of the weights without LoRA: names, shapes and float32 values, rounded if LoRA is
    merged.

    Of a vocabulary with new tokens, the first ``vocab_size`` rows count.
    """
    content = hashlib.sha256()
    for name, tensor in sorted(_base(model, vocab_size or model.vocab_size).items()):
        content.update(f"{name} {tuple(tensor.shape)} ".encode())
        content.update(tensor.float().cpu().contiguous().numpy().tobytes())
    return content.hexdigest()


def _base(model: TokenModel, vocab_size: int) -> dict[str, Tensor]:
    """Return the tensors of the model without new tokens, LoRA and head."""
    return {
        name: tensor[:vocab_size] if name.removesuffix(".weight") in MATRICES else tensor
        for name, tensor in base_tensors(model).items()
        if not name.startswith("head.")
    }


def _token_matrices(config: ModelConfig) -> dict[str, str]:
    """Return our matrices with one row per token, and their names elsewhere."""
    named = {
        line.ours.removesuffix(".weight"): line.theirs[0].removesuffix(".weight") for line in _names(config)
    }
    return {ours: named[ours] for ours in MATRICES if ours in named}


def _new_rows(found: ForeignTensors, config: ModelConfig, new: int) -> dict[str, str]:
    """Return our matrices of tokens, each with the name of the tensor of its new rows."""
    if not new:
        return {}
    rows = {ours: PREFIX + theirs + ROWS for ours, theirs in _token_matrices(config).items()}
    expected = (new, config.d_model)
    for name in rows.values():
        if found.shapes.get(name) is None:
            raise CheckpointError(f"{found.where}: lacks {name}")
        if tuple(found.shapes[name]) != expected:
            raise CheckpointError(
                f"{found.where}: {name} is of {tuple(found.shapes[name])}; expected {expected}"
            )
    return rows


def _changed(found: ForeignTensors, config: ModelConfig, rows: dict[str, str]) -> dict[str, list[str]]:
    """Return our layers that an adapter changes, each with its names in the adapter."""
    changes = [name for name in found.shapes if name not in rows.values()]
    modules = {name.rsplit(".", 2)[0] for name in changes}
    unknown = [
        name
        for name in changes
        if not name.startswith(PREFIX) or not name.endswith((".lora_A.weight", ".lora_B.weight"))
    ]
    if unknown:
        raise CheckpointError(f"{found.where}: holds {listed(unknown)}, which are not LoRA of a linear layer")
    chosen: dict[str, list[str]] = {}
    for ours, theirs in _modules(config).items():
        if modules.isdisjoint(theirs):
            continue
        missing = [
            f"{module}.lora_{side}.weight"
            for module in theirs
            for side in "AB"
            if f"{module}.lora_{side}.weight" not in found.shapes
        ]
        if missing:
            raise CheckpointError(f"{found.where}: lacks {listed(missing)}")
        chosen[ours] = theirs
        modules -= set(theirs)
    if modules:
        raise CheckpointError(
            f"{found.where}: changes {listed(sorted(modules))}, which this model does not have"
        )
    return chosen


def _one_down(found: ForeignTensors, theirs: Sequence[str]) -> Tensor:
    """Return the A of a layer, which its parts must share."""
    first, *others = (found.read_float32(f"{module}.lora_A.weight") for module in theirs)
    if not all(torch.equal(first, other) for other in others):
        raise CheckpointError(
            f"{found.where}: {', '.join(theirs)} differ in A; here they form one layer with one A"
        )
    return first


def _modules(config: ModelConfig) -> dict[str, list[str]]:
    """Return our linear layers, each with its names elsewhere."""
    return {
        ours.ours.removesuffix(".weight"): [PREFIX + name.removesuffix(".weight") for name in ours.theirs]
        for ours in _linear(config)
    }


def _linear(config: ModelConfig) -> list[Name]:
    """Return the names of the linear layers of the blocks."""
    return [
        line for line in _names(config) if line.ours.startswith("blocks.") and line.ours.endswith(".weight")
    ]


def _names(config: ModelConfig) -> list[Name]:
    """Return the name of each tensor elsewhere; our names if transformers does not support the model."""
    try:
        return names_of(architecture_of(config).table, config)
    except ConfigError:
        return [Name(ours, (ours,)) for ours in own_shapes(config)]


def _check_base(folder: Path, model: TokenModel, new: int) -> None:
    """Raise ``CheckpointError`` if the adapter records other base weights."""
    if not (folder / BASE).exists():
        return
    expected = read_object(folder / BASE)
    old = model.vocab_size - new
    shapes = {name: list(tensor.shape) for name, tensor in _base(model, old).items()}
    differing = [name for name, shape in shapes.items() if expected.get("shapes", {}).get(name) != shape]
    if differing:
        raise CheckpointError(
            f"{folder}: is for another model: {differing[0]} is of {shapes[differing[0]]} here, and of "
            f"{expected.get('shapes', {}).get(differing[0])} there"
        )
    if (here := base_hash(model, old)) != expected.get("sha256"):
        raise CheckpointError(
            f"{folder}: is for another model of this shape: its weights have the hash "
            f"{str(expected.get('sha256'))[:12]}, these have {here[:12]}"
        )
