"""Render conversations as text with a Jinja chat template, as in Hugging Face transformers.

The template receives ``messages``, each with ``role`` and ``content``, and ``add_generation_prompt``. It runs
in a sandbox.
"""

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from weakref import WeakKeyDictionary

from wholegpt.errors import ConfigError
from wholegpt.tokenizers import END_OF_TEXT, Tokenizer

ROLES = ("system", "user", "assistant")
DEFAULT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}"
    "{% if message.role == 'assistant' %}" + END_OF_TEXT + "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SEPARATOR = "<|answer|>"
PAIR_TEMPLATE = (
    "{% for message in messages %}{{ message.content }}"
    "{% if message.role == 'assistant' %}"
    + END_OF_TEXT
    + "{% else %}"
    + SEPARATOR
    + "{% endif %}{% endfor %}"
)
"""Source, separator, target: the sequence of an encoder–decoder."""
MOST_CHARACTERS = 20_000
SPECIAL = re.compile(r"<[|｜][^\s<>|｜]+[|｜]>|</?s>|<(?:bos|eos|start_of_turn|end_of_turn)>")
"""Pattern of special tokens: ``<|name|>``, and further names that published models use."""
BEFORE, AFTER = "\ue000", "\ue001"
"""Private-use characters around the index of a message, which replaces its content."""
FAILURES = (TypeError, ValueError, ArithmeticError, AttributeError, LookupError, RuntimeError, MemoryError)
"""Errors that a template can cause, besides Jinja's own."""
TRIED = tuple((role, f" \t<Aß 'é> & {role}\n\n") for role in ("user", "assistant"))
"""Probe messages, whose contents a template must keep unchanged, or only strip."""


@dataclass(frozen=True)
class Message:
    """One message of a conversation."""

    role: str
    content: str


Conversation = tuple[Message, ...]


@dataclass(frozen=True)
class EncodedConversation:
    """A conversation as token ids."""

    token_ids: list[int]
    scored: list[bool]
    """Whether each token belongs to an answer or ends it."""


class ChatTemplate:
    """A chat template."""

    def __init__(self, source: str = DEFAULT_TEMPLATE) -> None:
        """Compile a template.

        Raises ``ConfigError`` if it does not compile or changes the content of messages.
        """
        from jinja2 import TemplateError, TemplateSyntaxError

        from wholegpt.data.chat.sandbox import TemplateSandbox

        if len(source) > MOST_CHARACTERS:
            raise ConfigError(
                f"the chat template has {len(source):,} characters; expected at most {MOST_CHARACTERS:,}"
            )
        self.source = source
        try:
            self._sandbox = TemplateSandbox()
            self._template = self._sandbox.from_string(source)
        except (TemplateError, SyntaxError, *FAILURES) as error:
            line = error.lineno if isinstance(error, TemplateSyntaxError) else None
            raise ConfigError(
                f"the chat template does not compile{f': line {line}' if line else ''}: {error}"
            ) from None
        self._strips = False
        self._strips = self._strips_contents()
        self._example = list(self._parts([Message("user", "?"), Message("assistant", "!")], False))
        self._lead = self._white_space_before_answers()
        if not self.end_of_turn:
            raise ConfigError(
                f"the chat template produces no special token, such as {END_OF_TEXT}, at the end of an answer"
            )

    @cached_property
    def special_tokens(self) -> list[str]:
        """Return the special tokens in the template's output, in order."""
        everything = list(self._example)
        with contextlib.suppress(ConfigError):  # some templates reject system messages
            everything += self._parts([Message(role, "?") for role in ROLES], False)
        asked = self._parts([Message("user", "?")], True)
        found = (
            name for part in (*everything, *asked) if isinstance(part, str) for name in SPECIAL.findall(part)
        )
        return list(dict.fromkeys(found))

    @cached_property
    def end_of_turn(self) -> str:
        """Return the special token that ends an answer; empty if there is none."""
        after = self._example[-1]
        found = SPECIAL.search(after) if isinstance(after, str) else None
        return found[0] if found else ""

    def render(self, messages: Sequence[Message]) -> str:
        """Return a conversation as text. Raises ``ConfigError`` if the template fails on these messages."""
        parts = self._checked_parts(messages, False)
        return "".join(one.content if isinstance(one, Message) else one for one in parts)

    def encode(
        self, messages: Sequence[Message], tokenizer: Tokenizer, generation_prompt: bool = False
    ) -> EncodedConversation:
        """Return the tokens of a conversation; with ``generation_prompt``, up to the start of an answer.

        Special tokens in a message are encoded as plain text, and so are names in the template that the vocabulary does
        not have. An answer is encoded separately, as in generation: it consists of everything after the generation
        prompt. Raises ``ConfigError`` if the template fails on these messages.
        """
        token_ids: list[int] = []
        scored: list[bool] = []
        plain, answering = "", False

        def add(text: str, counts: bool) -> None:
            ids = tokenizer.encode(text, continues=tokenizer.continues_after(token_ids))
            token_ids.extend(ids)
            scored.extend([counts] * len(ids))

        for part in self._checked_parts(messages, generation_prompt):
            if isinstance(part, Message) and part.role != "assistant":
                plain += part.content
            elif isinstance(part, Message):
                lead = self._lead if plain.endswith(self._lead) else ""
                add(plain.removesuffix(lead), False)
                add(lead + part.content, True)
                plain, answering = "", True
            else:
                for text, special in _split(part, tokenizer):
                    plain += text
                    if special is not None:
                        add(plain, answering)
                        token_ids.append(special)
                        scored.append(answering)
                        plain, answering = "", False
        add(plain, False)
        return EncodedConversation(token_ids, scored)

    def _white_space_before_answers(self) -> str:
        """Return the white space between the generation prompt and an answer, such as that of Llama 2's template."""
        try:
            prompt = [one for one in self._parts([Message("user", "?")], True) if isinstance(one, str)]
        except ConfigError:
            return ""
        asked = [one for one in self._example[:-2] if isinstance(one, str)]
        lead = asked[-1].removeprefix(prompt[-1]) if asked[-1].startswith(prompt[-1]) else ""
        return lead if lead.isspace() else ""

    def _strips_contents(self) -> bool:
        """Return whether the template strips contents. Raises ``ConfigError`` if it changes them otherwise."""
        tried = [Message(*one) for one in TRIED]
        for strips in (False, True):
            self._strips = strips
            with contextlib.suppress(_ChangesContents):
                self._checked_parts(tried, False)
                return strips
        raise _ChangesContents

    def _checked_parts(self, messages: Sequence[Message], generation_prompt: bool) -> list["str | Message"]:
        """Return ``_parts`` after checking that the template renders the real contents the same way."""
        self._sandbox.now = datetime.now()
        parts = list(self._parts(messages, generation_prompt))
        text = "".join(one.content if isinstance(one, Message) else one for one in parts)
        if text != self._render([(one.role, one.content) for one in messages], generation_prompt):
            raise _ChangesContents
        return parts

    def _parts(self, messages: Sequence[Message], generation_prompt: bool) -> Iterator["str | Message"]:
        """Yield the template's text around the messages, and the messages."""
        marked = [(one.role, f"{BEFORE}{i}{AFTER}") for i, one in enumerate(messages)]
        text = self._render(marked, generation_prompt)
        pieces = re.split(f"{BEFORE}(\\d+){AFTER}", text)
        numbers = [int(number) for number in pieces[1::2]]
        if sorted(set(numbers)) != numbers or numbers != list(range(len(messages))):
            raise ConfigError(
                "the chat template must render every message's content once, unchanged and in order"
            )
        for around, number in zip(pieces[::2], [*numbers, None], strict=True):
            yield around
            if number is not None:
                said = messages[number]
                yield Message(said.role, said.content.strip()) if self._strips else said

    def _render(self, messages: Sequence[tuple[str, str]], generation_prompt: bool) -> str:
        """Render messages, each given as role and content."""
        from jinja2 import TemplateError, TemplateRuntimeError

        self._sandbox.start_rendering(sum(len(content) for _, content in messages))
        given = {
            "messages": [{"role": role, "content": content} for role, content in messages],
            "add_generation_prompt": generation_prompt,
            "tools": None,
            "documents": None,
            "bos_token": "",
            "eos_token": END_OF_TEXT,
        }
        try:
            return self._template.render(given)
        except (TemplateError, *FAILURES) as error:
            if type(error) is TemplateRuntimeError:  # by its raise_exception
                raise ConfigError(f"the chat template rejects the messages: {error}") from None
            raise ConfigError(f"the chat template fails: {type(error).__name__}: {error}") from None


class _ChangesContents(ConfigError):
    """The template changes contents, so other programs would render different text."""

    def __init__(self) -> None:
        super().__init__("the chat template must render every message's content unchanged, or stripped")


def check_conversation(messages: Sequence[Message], where: str) -> None:
    """Raise ``ConfigError`` unless user and assistant alternate, starting with the user after at most one
    system message.
    """
    if any(one.role not in ROLES for one in messages):
        role = next(one.role for one in messages if one.role not in ROLES)
        raise ConfigError(f"{where}: the role '{role}' is unknown; there are {', '.join(ROLES)}")
    roles = [one.role for one in messages]
    told = roles[:1] == ["system"]
    expected = ["system"] * told + [("user", "assistant")[i % 2] for i in range(len(roles) - told)]
    wrong = next((i for i, pair in enumerate(zip(roles, expected, strict=True)) if pair[0] != pair[1]), None)
    if wrong is not None or len(roles) == told:
        found = f"message {wrong + 1} is of the {roles[wrong]}" if wrong is not None else "there are none"
        raise ConfigError(
            f"{where}: user and assistant must alternate, starting with the user, after at most one message of "
            f"the system; {found}"
        )


_patterns: "WeakKeyDictionary[Tokenizer, re.Pattern[str]]" = WeakKeyDictionary()
"""Names of the special tokens of each vocabulary, besides ``SPECIAL``."""


def _split(text: str, tokenizer: Tokenizer) -> Iterator[tuple[str, int | None]]:
    """Yield plain text with the id of the special token that follows it; no id after the last text."""
    pattern = _patterns.get(tokenizer)
    if pattern is None:
        names = sorted(map(tokenizer.name_of, tokenizer.special_ids), key=len, reverse=True)
        pattern = _patterns[tokenizer] = re.compile("|".join([*map(re.escape, names), SPECIAL.pattern]))
    position = 0
    for found in pattern.finditer(text):
        token_id = tokenizer.id_of(found[0])
        if token_id is not None:
            yield text[position : found.start()], token_id
            position = found.end()
    yield text[position:], None
