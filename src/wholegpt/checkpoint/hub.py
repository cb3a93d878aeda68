"""Names of models on the Hugging Face hub."""

import re
from pathlib import Path

OWNER_AND_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
WITHOUT_OWNER = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2", "openai-gpt")
OUR_FOLDERS = ("runs", "models", "data")


def how_to_get(name: str) -> str:
    """Return advice for a missing model whose name looks like one of the hub; an empty string for other names.

    OWNER/NAME with an OWNER that is a folder here is taken for a misspelt path.
    """
    owner = name.partition("/")[0]
    if name not in WITHOUT_OWNER and (
        not OWNER_AND_NAME.fullmatch(name) or owner in OUR_FOLDERS or Path(owner).is_dir()
    ):
        return ""
    folder = name.rpartition("/")[2]
    return (
        f"; nothing is downloaded: if it is a model on the Hugging Face hub, `hf download {name} --local-dir "
        f"{folder}` gets it (pip install huggingface_hub), and `wholegpt import {folder}` opens the folder"
    )
