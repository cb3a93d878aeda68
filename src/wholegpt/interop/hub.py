"""Models of the Hugging Face hub."""

import importlib
from pathlib import Path
from typing import Any

from wholegpt.checkpoint import is_hub_name
from wholegpt.console import Console
from wholegpt.errors import CheckpointError

FILES = ("*.safetensors", "*.json", "*.jinja", "merges.txt", "vocab.bpe")
"""The files of a model that are downloaded: weights, configurations, tokenizer and chat template."""
PICKLED = "pytorch_model*.bin"
"""Weights of a model without safetensors."""
LONGEST_REASON = 200
"""Characters of an error of the hub that are shown."""


def from_hub(name: str, console: Console) -> Path | None:
    """Return the folder of the model ``name`` of the hub, downloaded into the cache of ``huggingface_hub``.

    Returns None for a name that is none of the hub, or is that of a file or folder, and if ``huggingface_hub`` is not
    installed. Raises ``CheckpointError`` if the hub cannot be reached, has no such model or does not give it.
    """
    if Path(name).exists() or not is_hub_name(name):
        return None
    try:
        hub: Any = importlib.import_module("huggingface_hub")
    except ModuleNotFoundError:
        return None
    utilities: Any = importlib.import_module("huggingface_hub.utils")
    utilities.logging.set_verbosity_error()  # our message says what failed
    if console.quiet:
        utilities.disable_progress_bars()
    console.note(f"downloading {name} from the Hugging Face hub")
    try:
        names = hub.list_repo_files(name)
        pickled = not any(one.endswith(".safetensors") for one in names)
        patterns = [*FILES, PICKLED] if pickled else [*FILES]
        return Path(hub.snapshot_download(name, allow_patterns=patterns))
    except (hub.errors.HTTPError, hub.errors.LocalEntryNotFoundError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:LONGEST_REASON]
        raise CheckpointError(
            f"{name}: is not here, and the Hugging Face hub does not give it: {reason}"
        ) from None
