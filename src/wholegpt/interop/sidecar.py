"""Files beside the weights of a Hugging Face model: its chat template, and the tokens that end its texts."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wholegpt.checkpoint import read_object
from wholegpt.errors import CheckpointError

CHAT_TEMPLATE, CHAT_TEMPLATES = "chat_template.jinja", "additional_chat_templates"
LEGACY_CHAT_TEMPLATE = "chat_template.json"
TOKENIZER_CONFIG, GENERATION_CONFIG = "tokenizer_config.json", "generation_config.json"
LARGEST_TEMPLATE = 2**20
"""Bytes of a template file that is read at all."""
DEFAULT_TOKENS = {"bos_token": "", "eos_token": "<|endoftext|>"}
"""What the names of special tokens stand for in a template here."""


def chat_template_in(folder: Path) -> tuple[str, Path] | None:
    """The default chat template of a model and the file that it is in, where ``transformers`` looks for it.

    ``chat_template.jinja`` comes before ``tokenizer_config.json``, which holds one template or several with names, and
    that before ``chat_template.json``. Names of special tokens in a template stand for those of
    ``tokenizer_config.json``. Raises ``CheckpointError`` for a file that cannot be read, and for several templates of
    which none is called ``default``.
    """
    config = _optional(folder / TOKENIZER_CONFIG)
    path = folder / CHAT_TEMPLATE
    if path.is_file():
        return _with_tokens(_text(path), config), path
    for path in (folder / TOKENIZER_CONFIG, folder / LEGACY_CHAT_TEMPLATE):
        found = _optional(path).get("chat_template")
        if found:
            return _with_tokens(_default_of(found, path), config), path
    if (folder / CHAT_TEMPLATES).is_dir():
        names = sorted(one.stem for one in (folder / CHAT_TEMPLATES).glob("*.jinja"))
        raise CheckpointError(
            f"{folder / CHAT_TEMPLATES}: has the templates {', '.join(names)}, and none is default"
        )
    return None


def end_ids_in(folder: Path, content: Mapping[str, Any], vocab_size: int) -> tuple[int, ...]:
    """The tokens at which ``transformers`` ends a text; none where nothing says so.

    ``content`` is ``config.json`` with its defaults; ``generation_config.json`` comes before it. Ids that the model
    does not have are left out, as they can never be generated. Raises ``CheckpointError`` for what is no token id.
    """
    path, given = folder / GENERATION_CONFIG, _optional(folder / GENERATION_CONFIG).get("eos_token_id")
    if given is None:
        path, given = folder / "config.json", content.get("eos_token_id")
    ids = given if isinstance(given, list) else [] if given is None else [given]
    if not all(isinstance(one, int) and not isinstance(one, bool) for one in ids):
        raise CheckpointError(f"{path}: eos_token_id is {given!r}; expected a token id, or several")
    return tuple(dict.fromkeys(one for one in ids if 0 <= one < vocab_size))


def without_special_names(template: str) -> str:
    """``template`` for other programs, in which the names of special tokens stand for what they stand for here."""
    return _with_set(template, DEFAULT_TOKENS)


def _with_tokens(template: str, config: Mapping[str, Any]) -> str:
    """``template``, in which the names of special tokens stand for those of a ``tokenizer_config.json``."""
    tokens: dict[str, str] = {}
    for name, value in config.items():
        content = value.get("content") if isinstance(value, Mapping) else value
        if name.endswith("_token") and isinstance(content, str):
            tokens[name] = content
    return _with_set(template, {**dict.fromkeys(DEFAULT_TOKENS, ""), **tokens}, DEFAULT_TOKENS)


def _with_set(template: str, tokens: Mapping[str, str], known: Mapping[str, str] = {}) -> str:
    """``template`` after a ``{% set %}`` for each of ``tokens`` that it uses and that is not ``known`` already."""
    from jinja2 import TemplateError, meta

    from wholegpt.data.chat.sandbox import TemplateSandbox

    if not any(name in template for name in tokens):
        return template
    try:
        used = meta.find_undeclared_variables(TemplateSandbox().parse(template))
    except (TemplateError, RecursionError):
        return template  # compiling it says what is wrong
    set_here = {name: value for name, value in tokens.items() if name in used and known.get(name) != value}
    # The first line break after a block is dropped, and is part of the template where it begins with one.
    begin = "\n" if set_here and template.startswith("\n") else ""
    return (
        "".join(f"{{% set {name} = {json.dumps(value)} %}}" for name, value in set_here.items())
        + begin
        + template
    )


def _default_of(found: Any, path: Path) -> str:
    if isinstance(found, list):
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, Mapping)}
        if "default" not in named:
            raise CheckpointError(
                f"{path}: has the templates {', '.join(map(str, named))}, and none is default"
            )
        found = named["default"]
    if isinstance(found, Mapping):
        found = found.get("default")
    if not isinstance(found, str):
        raise CheckpointError(f"{path}: chat_template is no text")
    return found


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST_TEMPLATE:
            raise CheckpointError(f"{path}: larger than {LARGEST_TEMPLATE:,} bytes; it is not read")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None


def _optional(path: Path) -> dict[str, Any]:
    """The JSON object in a file, empty where there is none."""
    return read_object(path) if path.is_file() else {}
