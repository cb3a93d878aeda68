"""Messages in the formats of other programs: roles, and contents that are text or lists of text parts."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from wholegpt.data.chat.template import Conversation, Message, check_conversation
from wholegpt.errors import ConfigError, DataError

MESSAGES = ("messages", "conversations", "conversation")
"""Fields with a list of messages."""
SYSTEM = ("system", "system_prompt", "system_message")
"""Fields with the system message, if it is not in the messages."""
ROLE_NAMES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "chatbot", "model", "ai"), "assistant"),
}
"""Names of the roles in other programs, in lower case."""
TOOL_ROLES = (
    *("tool", "function", "tool_call", "function_call", "tool_response", "function_response"),
    *("observation", "ipython", "environment"),
)
"""Roles of tool calls and of their results."""
TOOL_FIELDS = ("tool_calls", "function_call", "tool_call_id", "tools", "functions")
MEDIA_FIELDS = ("image", "images", "audio", "audios", "video", "videos")
JOINED_BY = "\n\n"
"""Separator of an instruction and its input."""
ROLE_FIELDS, CONTENT_FIELDS = ("role", "from"), ("content", "value", "text")
TEXT_PARTS = ("text", "input_text", "output_text")
"""Types of content parts that are text."""
WEIGHT_FIELDS = ("weight", "train", "training", "loss")
"""Fields of an answer with its weight in the loss."""
LEARNED = (None, "", 1, "1", "true", "True")
"""Values of these fields, ``True`` included, for an answer of full weight."""


def read_messages(value: Any, where: str) -> Conversation:
    """Return the conversation in a list of messages, which may be given as JSON text.

    Raises ``DataError`` naming ``where`` and the message for anything that is not a text conversation with at
    least one answer.
    """
    messages = conversation_of(value, where)
    if not any(one.role == "assistant" for one in messages):
        raise DataError(f"{where}: has no assistant message")
    return messages


def conversation_of(value: Any, where: str) -> Conversation:
    """Return the conversation like ``read_messages``, but without requiring an answer."""
    return checked_conversation(messages_of(value, where, "a list of messages"), where)


def messages_of(value: Any, where: str, expected: str) -> Conversation:
    """Return the messages in a list, which may be given as JSON text, in any order of roles.

    Raises ``DataError`` naming what was ``expected``.
    """
    value = decode_list(value)
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: expected {expected}, found {value!r:.60}")
    return tuple(read_message(one, f"{where}: message {number}") for number, one in enumerate(value, 1))


def checked_conversation(messages: Conversation, where: str) -> Conversation:
    """Return a conversation without empty system messages. Raises ``DataError`` unless its roles alternate."""
    messages = tuple(one for one in messages if one.content.strip() or one.role != "system")
    try:
        check_conversation(messages, where)
    except ConfigError as error:
        raise DataError(str(error)) from None
    return messages


def prompt_of(values: Sequence[Any], where: str) -> Conversation:
    """Return the messages of a prompt: a text and its input, or a list of messages, which may be in an object.

    The result is empty if there is neither.
    """
    first = values[0] if values else None
    if isinstance(first, Mapping) and "messages" in first:
        first = first["messages"]
    if (first is not None and not isinstance(first, str)) or (
        isinstance(first, str) and is_message_list(first)
    ):
        return messages_of(first, f"{where}: the prompt", "a text or a list of messages")
    texts = [one for one in values if isinstance(one, str) and one.strip()]
    return (Message("user", JOINED_BY.join(texts)),) if texts else ()


def is_message_list(text: str) -> bool:
    """Return whether a text is the JSON of a list of messages, and not a text that happens to be JSON."""
    listed = decode_list(text) if text.lstrip().startswith("[") else None
    return (
        isinstance(listed, list)
        and bool(listed)
        and all(isinstance(one, Mapping) and not {*ROLE_FIELDS}.isdisjoint(one) for one in listed)
    )


def with_system(messages: Conversation, system: Any, field: str, where: str) -> Conversation:
    """Return a conversation that starts with the ``system`` message from a separate ``field``, if there is one.

    Raises ``DataError`` if it is not a text, or differs from the system message in the messages.
    """
    if system is None or (isinstance(system, str) and not system.strip()):
        return messages
    if not isinstance(system, str):
        raise DataError(f"{where}: expected a text in '{field}', found {system!r:.40}")
    if messages[0].role != "system":
        return (Message("system", system), *messages)
    if messages[0].content.strip() != system.strip():
        raise DataError(f"{where}: the system message in '{field}' differs from the one in the messages")
    return messages


def holds_messages(value: Any) -> bool:
    """Return whether a value is a list of objects, like a conversation. The list may be given as JSON text."""
    value = decode_list(value)
    return isinstance(value, list) and all(isinstance(one, Mapping) for one in value)


def read_message(value: Any, where: str) -> Message:
    """Return one message. Only a system message may be empty.

    Raises ``DataError`` for an unknown role, for a content that is empty or not text, and for tool calls.
    """
    fields = value if isinstance(value, Mapping) else {}
    refuse_tools_and_media(fields, where)
    role = fields.get(_first(ROLE_FIELDS, fields))
    content = _text_of(fields.get(_first(CONTENT_FIELDS, fields)), where)
    name = role.strip().lower() if isinstance(role, str) else ""
    if name in TOOL_ROLES:
        raise DataError(f"{where}: the role '{role}' belongs to tool calls, which are not supported")
    if not name or content is None:
        raise DataError(f"{where}: a message needs a role and a content that is text, found {value!r:.60}")
    if name not in ROLE_NAMES:
        raise DataError(f"{where}: the role '{role}' is unknown; there are {', '.join(ROLE_NAMES)}")
    weighted = next((field for field in WEIGHT_FIELDS if fields.get(field) not in LEARNED), "")
    if weighted and ROLE_NAMES[name] == "assistant":
        raise DataError(
            f"{where}: {weighted} is {fields[weighted]}, but weights of answers are not supported; remove "
            "the conversation or the field"
        )
    if not content.strip() and ROLE_NAMES[name] != "system":
        raise DataError(f"{where}: a message needs a content, found {value!r:.60}")
    return Message(ROLE_NAMES[name], content)


def refuse_tools_and_media(fields: Mapping[str, Any], where: str) -> None:
    """Raise ``DataError`` for a record or a message with tool calls, images, sound or video."""
    for names, what in ((TOOL_FIELDS, "tool calls"), (MEDIA_FIELDS, "images, sound and video")):
        found = next(
            (key for key, value in fields.items() if str(key).lower() in names and not _empty(value)), ""
        )
        if found:
            raise DataError(f"{where}: has '{found}', and {what} are not supported; leave it out")


def unused_fields(value: Any) -> set[str]:
    """Return the non-empty fields of messages in a list that ``read_message`` does not use."""
    value = decode_list(value)
    found: set[str] = set()
    for one in value if isinstance(value, list) else []:
        if isinstance(one, Mapping):
            role = _first(ROLE_FIELDS, one)
            # Only answers enter the loss, so the weight of any other message matters only if it is set.
            answers = ROLE_NAMES.get(str(one.get(role)).strip().lower()) == "assistant"
            weights = {name for name in WEIGHT_FIELDS if answers or one.get(name) not in LEARNED}
            read = {role, _first(CONTENT_FIELDS, one), *weights}
            found |= {name for name, content in one.items() if name not in read and not _empty(content)}
    return found


def decode_list(value: Any) -> Any:
    """Return the list that a text contains as JSON, as in CSV cells; any other value unchanged."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        return msgspec.json.decode(value)
    except (msgspec.DecodeError, RecursionError):
        return value


def _first(names: Sequence[str], fields: Mapping[str, Any]) -> str:
    """Return the first of ``names`` that is a field with a value, or else the first that is a field."""
    there = [name for name in names if name in fields]
    return next((name for name in there if fields[name] is not None), there[0] if there else "")


def _text_of(content: Any, where: str) -> str | None:
    """Return a content as text; ``None`` if it is not text."""
    if content is None:
        return ""
    if not isinstance(content, list):
        return content if isinstance(content, str) else None
    return "".join(_text_of_part(part, where) for part in content)


def _text_of_part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, Mapping) else ""
    text = part.get("text") if isinstance(part, Mapping) else None
    if kind not in TEXT_PARTS or not isinstance(text, str):
        found = f"type '{kind}'" if kind and kind not in TEXT_PARTS else f"{part!r:.40}"
        raise DataError(f"{where}: a part of its content is not text: {found}")
    return text


def _empty(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip() in ("", "[]", "{}", "null", "None")
    return value is None or value is False or (isinstance(value, Sequence | Mapping) and not value)
