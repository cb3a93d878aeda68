"""Prompt templates: text around the prompt, and the stop texts that end the completion."""

from dataclasses import dataclass
from pathlib import Path

from wholegpt.data import read_text
from wholegpt.errors import ConfigError
from wholegpt.files import is_file
from wholegpt.settings.serialization import nearest

PLACEHOLDER = "{prompt}"


@dataclass(frozen=True)
class Template:
    """A text with ``{prompt}`` in it."""

    text: str
    stop: tuple[str, ...] = ()
    """Stop texts that end the completion."""


TEMPLATES = {
    "story": Template("A story about {prompt}.\n\nOnce upon a time"),
    "technical": Template("Technical documentation: {prompt}\n\nOverview:"),
    "conversation": Template("User: {prompt}\nAssistant:", ("\nUser:",)),
    "creative": Template("A poem about {prompt}:\n\n"),
}


def fill_template(template: str, prompt: str) -> tuple[str, tuple[str, ...]]:
    """Return ``prompt`` inserted in a template, and the template's stop texts.

    ``template`` is a name in ``TEMPLATES``, a text with ``{prompt}`` in it, or a file with such a text
    (without its final line end). Other braces have no meaning. Raises ``ConfigError`` for anything else.
    """
    chosen = TEMPLATES.get(template) or Template(_text_of(template))
    return chosen.text.replace(PLACEHOLDER, prompt), chosen.stop


def _text_of(template: str) -> str:
    if PLACEHOLDER in template:
        return template
    if not is_file(template):
        hint = nearest(template, list(TEMPLATES))
        raise ConfigError(
            f"template '{template}' is neither a template name, nor a file, nor a text with {PLACEHOLDER}; {hint}"
        )
    text = read_text(Path(template), "utf-8")
    if PLACEHOLDER not in text:
        raise ConfigError(f"{template}: has no {PLACEHOLDER}, which marks where the prompt goes")
    return text.removesuffix("\n").removesuffix("\r")
