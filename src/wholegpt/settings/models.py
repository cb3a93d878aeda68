"""Names of models: runs, model folders, presets and models of the Hugging Face hub."""

import difflib
import re
from itertools import islice
from pathlib import Path

from wholegpt.errors import CheckpointError
from wholegpt.files import exists, recover_unlocked
from wholegpt.settings import presets

OWNER_AND_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
WITHOUT_OWNER = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2", "openai-gpt")
OUR_FOLDERS = ("runs", "models", "data")
RUNS = Path("runs")
"""Where commands write runs by default."""
MOST_NEIGHBORS = 1000
"""Maximum number of folders that are compared with a misspelt path."""
MOST_NAMED = 3
"""Maximum number of runs that a message names."""


def is_hub_name(name: str) -> bool:
    """Return whether a name looks like that of a model of the hub.

    OWNER/NAME with an OWNER that is a folder here is taken for a misspelt path.
    """
    owner = name.partition("/")[0]
    looks_like_path = owner in OUR_FOLDERS or Path(owner).is_dir()
    return name in WITHOUT_OWNER or (OWNER_AND_NAME.fullmatch(name) is not None and not looks_like_path)


def how_to_get(name: str) -> str:
    """Return advice for a missing model whose name looks like one of the hub; an empty string for other names."""
    if not is_hub_name(name):
        return ""
    return (
        f"; if it is a model on the Hugging Face hub, `wholegpt import {name}` downloads it "
        "(pip install 'wholegpt[hub]')"
    )


def holds_model(folder: Path) -> bool:
    """Return whether a folder looks like a run or a model."""
    return any(exists(folder / name) for name in ("checkpoints", "model.safetensors", "config.yaml"))


def _can_be_opened(folder: Path) -> bool:
    """Return whether a folder is a run with a checkpoint, or a model folder of wholegpt."""
    try:
        own = '"format_version"' in (folder / "config.json").read_text(encoding="utf-8")
    except (OSError, ValueError):
        own = False
    return own or any(folder.glob("checkpoints/*/model.safetensors"))


def check_model_exists(name: str) -> None:
    """Raise ``CheckpointError``, with the model that was probably meant, for neither a path nor a preset."""
    path = Path(name)
    if not (exists(path) or presets.is_preset(name)):
        recover_unlocked(path)
        if not exists(path):
            advice = how_to_get(name) or f"; {_nearest(name)}"
            raise CheckpointError(f"{name}: no such run, model folder or preset{advice}")


def _nearest(name: str) -> str:
    """Return a hint for a missing model: one with a similar name, else the newest runs, else how to get one."""
    path, bare = Path(name), Path(name).name == name
    folders = {path.parent, RUNS} if bare else {path.parent}
    beside = [
        one for folder in folders if folder.is_dir() for one in islice(folder.glob("[!.]*/"), MOST_NEIGHBORS)
    ]
    models = [one for one in beside if _can_be_opened(one)]
    names = {str(one): str(one) for one in beside} | {one.name: str(one) for one in models if bare}
    names |= {preset: preset for preset in presets.PRESETS if bare}
    if close := difflib.get_close_matches(name, names, n=1, cutoff=0.8):
        return f"did you mean '{names[close[0]]}'?"
    if models:
        newest = sorted(models, key=lambda one: one.stat().st_mtime, reverse=True)[:MOST_NAMED]
        return (
            f"the newest models {'here' if bare else f'in {path.parent}'} are {', '.join(map(str, newest))}"
        )
    if bare:
        return presets.nearest(name, list(presets.PRESETS))
    return "`wholegpt train TEXT` trains a model"
