"""Files beside the weights of a Hugging Face model: its chat template, and the tokens that end generation."""

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
"""Maximum bytes of a template file."""
DEFAULT_TOKENS = {"bos_token": "", "eos_token": "<|endoftext|>"}
"""Values of the names of special tokens in our templates."""


def chat_template_in(folder: Path) -> tuple[str, Path] | None:
    """Return the default chat template of a model and its file, found as in ``transformers``.

    ``chat_template.jinja`` takes precedence over ``tokenizer_config.json``, which has one template or several
    named ones, and that over ``chat_template.json``. Names of special tokens in a template have the values of
    ``tokenizer_config.json``. Raises ``CheckpointError`` for an unreadable file, and for several templates
    without one named ``default``.
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
            f"{folder / CHAT_TEMPLATES}: has the templates {', '.join(names)}, and none is named default"
        )
    return None


def chat_template_of(metadata: Mapping[str, Any], path: Path) -> tuple[str, Path] | None:
    """Return the chat template in the metadata of the GGUF file ``path``, and that file; None if it has none."""
    template, tokens = metadata.get("tokenizer.chat_template"), metadata.get("tokenizer.ggml.tokens", [])
    if not isinstance(template, str) or not template:
        return None
    names: dict[str, str] = {}
    for name in ("bos", "eos", "unk"):
        token_id = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if isinstance(token_id, int) and 0 <= token_id < len(tokens):
            names[f"{name}_token"] = tokens[token_id]
    return _with_tokens(template, names), path


def end_ids_in(folder: Path, content: Mapping[str, Any], vocab_size: int) -> tuple[int, ...]:
    """Return the tokens at which ``transformers`` ends generation; empty if unspecified.

    ``content`` is ``config.json`` with its defaults; ``generation_config.json`` takes precedence. Ids that
    the model does not have are left out, since they are never generated. Raises ``CheckpointError`` for an
    invalid token id.
    """
    path, given = folder / GENERATION_CONFIG, _optional(folder / GENERATION_CONFIG).get("eos_token_id")
    if given is None:
        path, given = folder / "config.json", content.get("eos_token_id")
    ids = given if isinstance(given, list) else [] if given is None else [given]
    if not all(isinstance(one, int) and not isinstance(one, bool) for one in ids):
        raise CheckpointError(f"{path}: eos_token_id is {given!r}; expected a token id, or several")
    return tuple(dict.fromkeys(one for one in ids if 0 <= one < vocab_size))


def without_special_names(template: str) -> str:
    """Return ``template`` for other programs, with our values for the names of special tokens."""
    return _with_set(template, DEFAULT_TOKENS)


def _with_tokens(template: str, config: Mapping[str, Any]) -> str:
    """Return ``template`` with the values of ``tokenizer_config.json`` for the names of special tokens."""
    tokens: dict[str, str] = {}
    for name, value in config.items():
        content = value.get("content") if isinstance(value, Mapping) else value
        if name.endswith("_token") and isinstance(content, str):
            tokens[name] = content
    return _with_set(template, {**dict.fromkeys(DEFAULT_TOKENS, ""), **tokens}, DEFAULT_TOKENS)


def _with_set(template: str, tokens: Mapping[str, str], known: Mapping[str, str] = {}) -> str:
    """Return ``template`` after a ``{% set %}`` for each of ``tokens`` that it uses and that is not in
    ``known``.
    """
    from jinja2 import TemplateError, meta

    from wholegpt.data.chat.sandbox import TemplateSandbox

    if not any(name in template for name in tokens):
        return template
    try:
        used = meta.find_undeclared_variables(TemplateSandbox().parse(template))
    except (TemplateError, RecursionError):
        return template  # compiling it raises the error
    set_here = {name: value for name, value in tokens.items() if name in used and known.get(name) != value}
    # Jinja drops the first line break after a block, which here belongs to the template.
    line_break = "\n" if set_here and template.startswith("\n") else ""
    return (
        "".join(f"{{% set {name} = {json.dumps(value)} %}}" for name, value in set_here.items())
        + line_break
        + template
    )


def _default_of(found: Any, path: Path) -> str:
    if isinstance(found, list):
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, Mapping)}
        if "default" not in named:
            raise CheckpointError(
                f"{path}: has the templates {', '.join(map(str, named))}, and none is named default"
            )
        found = named["default"]
    if isinstance(found, Mapping):
        found = found.get("default")
    if not isinstance(found, str):
        raise CheckpointError(f"{path}: chat_template is not a text")
    return found


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST_TEMPLATE:
            raise CheckpointError(f"{path}: larger than {LARGEST_TEMPLATE:,} bytes; it is not read")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None


def _optional(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; empty if there is none."""
    return read_object(path) if path.is_file() else {}
