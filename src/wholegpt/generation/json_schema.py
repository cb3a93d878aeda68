"""Validate JSON schemas: unsupported keywords, and schemas that no finite text satisfies, are errors."""

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from wholegpt.errors import ConfigError

HOLD_ONE = ("additionalProperties", "items")
HOLD_LIST = ("allOf", "anyOf", "oneOf", "prefixItems")
HOLD_NAMED = ("$defs", "definitions", "patternProperties", "properties")
"""Keywords whose values are schemas themselves."""
SUPPORTED = frozenset(
    (
        *HOLD_ONE,
        *HOLD_LIST,
        *HOLD_NAMED,
        *("$ref", "const", "enum", "required", "type"),
        *("maxItems", "maxLength", "maxProperties", "minItems", "minLength"),
        *("exclusiveMaximum", "exclusiveMinimum", "maximum", "minimum", "multipleOf"),
        *("format", "pattern"),
        *("$comment", "$id", "$schema", "default", "deprecated", "description", "examples"),
        *("readOnly", "title", "writeOnly"),
    )
)
"""All keywords that are enforced or are only descriptions. ``minProperties`` is missing, because a property may be
generated twice.
"""


LEAP_YEAR = "([0-9]{2}(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)"
DAYS = (
    "^(000[1-9]|00[1-9]|0[1-9]|[1-9])",
    f"^([0-9]{{4}}-(0[13-9]|1[0-2]|02-[01]|02-2[0-8])|{LEAP_YEAR}-02-29)",
)
"""Restrict the library's dates to those that exist: years start at 1, and February 29 is in leap years."""
SECONDS = "[0-9]:[0-5][0-9]:[0-5][0-9]"
"""Restrict the library's times to those without a leap second, which few parsers accept."""
STRICTER = {"date": DAYS, "time": (SECONDS,), "date-time": (*DAYS, SECONDS)}


def read_schema(text: str) -> dict[str, Any]:
    """Parse a JSON schema, and restrict its dates and times to those that exist.

    Raises ``ConfigError`` naming the location of anything unsupported.
    """
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"json_schema: not JSON: {error}") from None
    if not isinstance(schema, dict):
        raise ConfigError(f"json_schema: expected an object, found {_shown(schema)}")
    try:
        can_end = _can_end(schema, _met_by_finite_text(schema))
    except RecursionError:
        raise ConfigError("json_schema: nested too deep") from None
    if not can_end:
        raise ConfigError("json_schema: no finite text satisfies it: it requires itself recursively")
    return _with_strict_formats(schema)


def _with_strict_formats(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    strict: dict[str, Any] = {}
    for keyword, value in schema.items():
        if keyword in HOLD_ONE:
            strict[keyword] = _with_strict_formats(value)
        elif keyword in HOLD_LIST:
            strict[keyword] = [_with_strict_formats(one) for one in value]
        elif keyword in HOLD_NAMED:
            strict[keyword] = {name: _with_strict_formats(one) for name, one in value.items()}
        else:
            strict[keyword] = value
    stricter = STRICTER.get(str(strict.get("format")), ())
    if stricter:
        strict["allOf"] = [*strict.get("allOf", []), *({"pattern": pattern} for pattern in stricter)]
    return strict


def check_pattern(pattern: str, where: str) -> None:
    """Raise ``ConfigError`` for a lone backslash at the end, which would be ignored."""
    if (len(pattern) - len(pattern.rstrip("\\"))) % 2:
        raise ConfigError(f"{where}: ends in a backslash; double it, or leave it out")


def _references(schema: Any, where: str) -> Iterator[str]:
    """Yield every ``$ref``, and check every keyword."""
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        raise ConfigError(f"json_schema: {where}: expected a schema, found {_shown(schema)}")
    for keyword, value in schema.items():
        here = f"{where}/{keyword}"
        if keyword not in SUPPORTED:
            raise ConfigError(f"json_schema: {here}: this keyword is not supported; leave it out")
        if keyword in HOLD_ONE:
            yield from _references(value, here)
        elif keyword in HOLD_LIST or keyword in HOLD_NAMED:
            kind = list if keyword in HOLD_LIST else dict
            if not isinstance(value, kind):
                raise ConfigError(f"json_schema: {here}: expected schemas, found {_shown(value)}")
            for name, one in value.items() if isinstance(value, dict) else enumerate(value):
                if keyword == "patternProperties":
                    check_pattern(str(name), f"json_schema: {here}")
                yield from _references(one, f"{here}/{name}")
        elif keyword == "pattern":
            check_pattern(str(value), f"json_schema: {here}")
        elif keyword == "$ref":
            yield str(value)


def _met_by_finite_text(root: dict[str, Any]) -> set[str]:
    """Return the references that some finite JSON satisfies, as a least fixed point."""
    targets: dict[str, Any] = {}
    users: dict[str, list[str]] = {}
    waiting = list(_references(root, "#"))
    while waiting:
        reference = waiting.pop()
        if reference not in targets:
            targets[reference] = _target(root, reference)
            for used in _references(targets[reference], reference):
                users.setdefault(used, []).append(reference)
                waiting.append(used)
    met: set[str] = set()
    waiting = list(targets)
    while waiting:
        reference = waiting.pop()
        if reference not in met and _can_end(targets[reference], met):
            met.add(reference)
            waiting += users.get(reference, [])
    return met


def _can_end(schema: Any, met: set[str]) -> bool:
    """Return whether finite JSON satisfies ``schema`` if it satisfies the references in ``met``."""
    if isinstance(schema, bool):
        return True
    either = [schema[keyword] for keyword in ("anyOf", "oneOf") if schema.get(keyword)]
    kinds = _listed(schema.get("type", ()))
    return (
        ("$ref" not in schema or schema["$ref"] in met)
        and all(_can_end(one, met) for one in schema.get("allOf", ()))
        and all(any(_can_end(one, met) for one in options) for options in either)
        and (not kinds or any(_can_end_as(kind, schema, met) for kind in kinds))
    )


def _can_end_as(kind: Any, schema: dict[str, Any], met: set[str]) -> bool:
    if kind == "object":
        properties = schema.get("properties", {})
        other = True if "patternProperties" in schema else schema.get("additionalProperties", True)
        names = [name for name in _listed(schema.get("required", ())) if isinstance(name, str)]
        return all(_can_end(properties.get(name, other), met) for name in names)
    least = schema.get("minItems", 0)
    if kind != "array" or not isinstance(least, int):
        return True
    first = schema.get("prefixItems", [])
    needed = [*first[:least], *([schema.get("items", True)] if least > len(first) else [])]
    return all(_can_end(one, met) for one in needed)


def _target(root: dict[str, Any], reference: str) -> Any:
    """Return the target of a reference within the schema (RFC 6901)."""
    target: Any = root
    try:
        start, *parts = unquote(reference).split("/")
        if start != "#":
            raise KeyError(reference)
        for part in parts:
            key = part.replace("~1", "/").replace("~0", "~")
            target = target[int(key)] if isinstance(target, list) else target[key]
    except (KeyError, IndexError, TypeError, ValueError):
        raise ConfigError(f"json_schema: $ref {_shown(reference)} points to nothing in the schema") from None
    if not isinstance(target, dict | bool):
        raise ConfigError(
            f"json_schema: $ref {_shown(reference)} points to {_shown(target)}, which is not a schema"
        )
    return target


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value] if isinstance(value, str) else []


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:60]}…"
