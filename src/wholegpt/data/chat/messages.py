"""Messages as other programs write them: their roles, and contents that are text or lists of text parts."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from wholegpt.data.chat.template import Conversation, Message, check_conversation
from wholegpt.errors import ConfigError, DataError

ROLE_NAMES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "chatbot", "model", "ai"), "assistant"),
}
"""What other programs call the roles, in lower case."""
TOOL_ROLES = (
    *("tool", "function", "tool_call", "function_call", "tool_response", "function_response"),
    *("observation", "ipython", "environment"),
)
"""Roles of calls of tools, and of what these return."""
TOOL_FIELDS = ("tool_calls", "function_call", "tool_call_id", "tools", "functions")
MEDIA_FIELDS = ("image", "images", "audio", "audios", "video", "videos")
ROLE_FIELDS, CONTENT_FIELDS = ("role", "from"), ("content", "value", "text")
TEXT_PARTS = ("text", "input_text", "output_text")
"""Types of parts of a content that are text."""
WEIGHT_FIELDS = ("weight", "train", "training", "loss")
"""Fields of an answer that say how much it is learned."""
LEARNED = (None, "", 1, "1", "true", "True")
"""Their values, ``True`` among them, where it is learned like all others."""


def read_messages(value: Any, where: str) -> Conversation:
    """The conversation in a list of messages, or in such a list as JSON text.

    Raises ``DataError`` naming ``where`` and the message for anything that is not a conversation of text with at least
    one answer.
    """
    messages = conversation_of(value, where)
    if not any(one.role == "assistant" for one in messages):
        raise DataError(f"{where}: has no answer, a message of the assistant")
    return messages


def conversation_of(value: Any, where: str) -> Conversation:
    """``read_messages`` without the demand for an answer."""
    value = decode_list(value)
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: expected a list of messages, found {value!r:.60}")
    messages = [read_message(one, f"{where}: message {number}") for number, one in enumerate(value, 1)]
    messages = [one for one in messages if one.content.strip() or one.role != "system"]
    try:
        check_conversation(messages, where)
    except ConfigError as error:
        raise DataError(str(error)) from None
    return tuple(messages)


def read_message(value: Any, where: str) -> Message:
    """One message. That of the system may be empty.

    Raises ``DataError`` for an unknown role, a content that is empty or not text, and whatever belongs to tools.
    """
    fields = value if isinstance(value, Mapping) else {}
    refuse_tools_and_media(fields, where)
    role = fields.get(_first(ROLE_FIELDS, fields))
    content = _text_of(fields.get(_first(CONTENT_FIELDS, fields)), where)
    name = role.strip().lower() if isinstance(role, str) else ""
    if name in TOOL_ROLES:
        raise DataError(f"{where}: the role '{role}' is of tools, which are not supported")
    if not name or content is None:
        raise DataError(f"{where}: a message needs a role and a content that is text, found {value!r:.60}")
    if name not in ROLE_NAMES:
        raise DataError(f"{where}: the role '{role}' is unknown; there are {', '.join(ROLE_NAMES)}")
    weighted = next((field for field in WEIGHT_FIELDS if fields.get(field) not in LEARNED), "")
    if weighted and ROLE_NAMES[name] == "assistant":
        raise DataError(
            f"{where}: {weighted} is {fields[weighted]}, and every answer of a conversation is learned alike; leave "
            "the conversation out, or the field"
        )
    if not content.strip() and ROLE_NAMES[name] != "system":
        raise DataError(f"{where}: a message needs a content, found {value!r:.60}")
    return Message(ROLE_NAMES[name], content)


def refuse_tools_and_media(fields: Mapping[str, Any], where: str) -> None:
    """Raise ``DataError`` for a record or a message that has more to it than text."""
    for names, what in ((TOOL_FIELDS, "calls of tools"), (MEDIA_FIELDS, "images, sound and video")):
        found = next((key for key, value in fields.items() if key.lower() in names and not _empty(value)), "")
        if found:
            raise DataError(f"{where}: has '{found}', and {what} are not supported; leave it out")


def unused_fields(value: Any) -> set[str]:
    """The fields of messages in a list that ``read_message`` does not read, those that hold something."""
    value = decode_list(value)
    found: set[str] = set()
    for one in value if isinstance(value, list) else []:
        if isinstance(one, Mapping):
            role = _first(ROLE_FIELDS, one)
            # Nothing but answers is learned, so that a weight of anything else matters only where it is one.
            answers = ROLE_NAMES.get(str(one.get(role)).strip().lower()) == "assistant"
            weights = {name for name in WEIGHT_FIELDS if answers or one.get(name) not in LEARNED}
            read = {role, _first(CONTENT_FIELDS, one), *weights}
            found |= {name for name, content in one.items() if name not in read and not _empty(content)}
    return found


def decode_list(value: Any) -> Any:
    """The list that a text holds as JSON, as cells of separated values do; anything else as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        return msgspec.json.decode(value)
    except (msgspec.DecodeError, RecursionError):
        return value


def _first(names: Sequence[str], fields: Mapping[str, Any]) -> str:
    """The first of ``names`` that is a field with a value, or else that is a field."""
    there = [name for name in names if name in fields]
    return next((name for name in there if fields[name] is not None), there[0] if there else "")


def _text_of(content: Any, where: str) -> str | None:
    """A content as text; none where it is not."""
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
