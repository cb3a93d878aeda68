"""Prompt templates: a text around the prompt, and what ends the answer to it."""

from dataclasses import dataclass
from pathlib import Path

from wholegpt.data import read_text
from wholegpt.errors import ConfigError
from wholegpt.files import is_file
from wholegpt.settings.serialization import nearest

PLACE = "{prompt}"


@dataclass(frozen=True)
class Template:
    """A text with ``{prompt}`` in it."""

    text: str
    stop: tuple[str, ...] = ()
    """Texts that end what is written after it."""


TEMPLATES = {
    "story": Template("A story about {prompt}.\n\nOnce upon a time"),
    "technical": Template("Technical documentation: {prompt}\n\nOverview:"),
    "conversation": Template("User: {prompt}\nAssistant:", ("\nUser:",)),
    "creative": Template("A poem about {prompt}:\n\n"),
}


def fill_template(template: str, prompt: str) -> tuple[str, tuple[str, ...]]:
    """``prompt`` in a template, and the template's stop texts.

    ``template`` is a name of ``TEMPLATES``, a text with ``{prompt}`` in it, or a file that holds one (a line end at its
    end left out). Nothing else in braces means anything. Raises ``ConfigError`` for what is none of these.
    """
    chosen = TEMPLATES.get(template) or Template(_text_of(template))
    return chosen.text.replace(PLACE, prompt), chosen.stop


def _text_of(template: str) -> str:
    if PLACE in template:
        return template
    if not is_file(template):
        hint = nearest(template, list(TEMPLATES))
        raise ConfigError(
            f"template '{template}' is no name, no file, and no text with {PLACE} in it; {hint}"
        )
    text = read_text(Path(template), "utf-8")
    if PLACE not in text:
        raise ConfigError(f"{template}: has no {PLACE}, which says where the prompt goes in the template")
    return text.removesuffix("\n").removesuffix("\r")
