"""Names of models on the Hugging Face hub."""

import re
from pathlib import Path

OWNER_AND_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
WITHOUT_OWNER = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2", "openai-gpt")
OUR_FOLDERS = ("runs", "models", "data")


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
