"""The parent of a run as its frozen reference (``finetuning.reference_kl``, PPO and GRPO)."""

from collections.abc import Mapping
from dataclasses import replace

from wholegpt.checkpoint import ModelFolder, ModelMetadata, make_model
from wholegpt.errors import RunError
from wholegpt.model import NeuralModel, TokenModel
from wholegpt.model.lora import base_tensors
from wholegpt.settings.schema import Config
from wholegpt.settings.sections.tasks import TASKS
from wholegpt.stages.definition import RunContents
from wholegpt.tokenizers import Tokenizer
from wholegpt.training.reference import FrozenReference, LoraBase, Reference

REFERENCE = "reference"
"""The role of the companion."""


def needs_reference(config: Config) -> bool:
    """Return whether a run compares its model with its parent while it trains."""
    return config.finetuning.reference_kl or TASKS[config.finetuning.task].rollouts


def companions_of(
    config: Config, model: TokenModel, tokenizer: Tokenizer, metadata: ModelMetadata
) -> Mapping[str, ModelFolder]:
    """Return a copy of ``model``, that of step 0, as the reference, if ``config`` asks for one.

    No copy is needed with LoRA, whose base is the reference itself, unless embeddings of new tokens are trained in it.
    """
    if not needs_reference(config) or _lora_base_is_reference(metadata):
        return {}
    plain = replace(metadata, lora=None, value_head=False)
    reference = make_model(model.config, plain)
    tensors = {name: one for name, one in base_tensors(model).items() if not name.startswith("head.")}
    found = reference.load_state_dict(tensors, strict=False)
    assert set(found.missing_keys) <= {"unembedding.weight"} and not found.unexpected_keys  # may be tied
    return {REFERENCE: ModelFolder(reference, tokenizer, plain)}


def _lora_base_is_reference(metadata: ModelMetadata) -> bool:
    """Return whether the frozen weights are those of step 0: there is LoRA, and no new embeddings are trained."""
    return metadata.lora is not None and not metadata.new_tokens


def reference_of(run: RunContents) -> Reference | None:
    """Return the reference of a run, if its settings ask for one."""
    if not needs_reference(run.config):
        return None
    if _lora_base_is_reference(run.metadata()):
        return LoraBase()
    companion = run.companions().get(REFERENCE)
    if companion is None:
        raise RunError(f"{run.path}: lineage.json records no reference model; restore it, or start a new run")
    assert isinstance(companion.model, NeuralModel)
    return FrozenReference(companion.model)
