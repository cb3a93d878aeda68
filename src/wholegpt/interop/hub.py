"""Models of the Hugging Face hub."""

import importlib
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from wholegpt.checkpoint import listed
from wholegpt.console import Console
from wholegpt.errors import CheckpointError
from wholegpt.settings.models import is_hub_name

WEIGHTS = ("model*.safetensors", "adapter_model.safetensors", "pytorch_model*.bin", "adapter_model.bin")
"""Files with the weights of a model; the first kind that a model has is downloaded."""
SHARDS = re.compile(r"-\d+-of-\d+\.")
LONGEST_REASON = 200
"""Characters of an error of the hub that are shown."""


def from_hub(name: str, console: Console) -> Path | None:
    """Return the folder of the model ``name`` of the hub, downloaded into the cache of ``huggingface_hub``.

    Returns None if the name cannot be that of a model of the hub or is that of a file or folder, and if
    ``huggingface_hub`` is not installed. Raises ``CheckpointError`` if the hub cannot be reached, has no such model or
    denies access to it.
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
        found = hub.model_info(name)  # list_repo_files would try again for half a minute without a network
        files = _needed(name, [one.rfilename for one in found.siblings])
        return Path(hub.snapshot_download(name, allow_patterns=files))
    except (hub.errors.HTTPError, hub.errors.LocalEntryNotFoundError, ValueError, OSError) as error:
        known = hub.try_to_load_from_cache(name, "config.json")
        if isinstance(known, str):
            console.note(f"the hub cannot be reached; {name} was downloaded before")
            return Path(known).parent
        reason = " ".join(str(error).split())[:LONGEST_REASON]
        raise CheckpointError(
            f"{name}: is not here, and the Hugging Face hub does not give it: {reason}"
        ) from None


def _needed(name: str, files: list[str]) -> list[str]:
    """Return the files of a model that an import reads: weights, configurations, tokenizer and chat template.

    Copies of the weights in other formats or folders are left out. Raises ``CheckpointError`` if there are no weights.
    """
    top = [file for file in files if "/" not in file]
    kinds = ([file for file in top if fnmatch(file, kind)] for kind in WEIGHTS)
    weights = next((kind for kind in kinds if kind), [])
    if not weights:
        ggufs = [file for file in files if file.endswith(".gguf")]
        advice = f"; download one of its GGUF files and import it: {listed(ggufs)}" if ggufs else ""
        raise CheckpointError(f"{name}: holds no weights that can be imported{advice}")
    whole = [file for file in weights if file in ("model.safetensors", "pytorch_model.bin")]
    shards = [file for file in weights if SHARDS.search(file)]
    others = [
        file for file in top if file.endswith((".json", ".jinja")) or file in ("merges.txt", "vocab.bpe")
    ]
    return [*(whole or shards or weights), *others]
