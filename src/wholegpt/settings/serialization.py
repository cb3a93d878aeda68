"""Configs as plain mappings and as YAML, both ways.

Its libraries are imported where they are used: the help of the command line needs neither.
"""

import dataclasses
import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from wholegpt.errors import ConfigError
from wholegpt.settings.choices import Choice, underscored

T = TypeVar("T")
DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9_]*)")


def to_mapping(config: Any) -> dict[str, Any]:
    """A config dataclass as nested plain dicts, ready for JSON or YAML."""
    import msgspec

    return msgspec.to_builtins(config)


def from_mapping(mapping: Mapping[str, Any], base: T, where: str = "config") -> T:
    """``base`` with the fields named in the nested ``mapping`` replaced; hyphens count as underscores in names.

    Raises ``ConfigError`` naming the field for an unknown name (with the nearest right one), or a
    value of the wrong type.
    """
    import msgspec

    merged = _merge(to_mapping(base), _named(mapping, type(base), where, prefix=""))
    try:
        return msgspec.convert(merged, type(base), strict=False)
    except msgspec.ValidationError as error:
        message = str(error).replace("`", "'")
        problem, _, location = message.partition(" - at ")
        field_name = location.strip("'").removeprefix("$.") or "the whole"
        raise ConfigError(f"{where}: {field_name}: {problem}") from None


def to_yaml(config: Any) -> str:
    """A config as YAML, in the order of its fields."""
    import yaml

    return yaml.safe_dump(to_mapping(config), sort_keys=False, allow_unicode=True)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises ``ConfigError`` naming file and line, also for a key that is given twice."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            seen: set[str] = set()
            for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
                if key.value in seen:
                    problem = f"'{key.value}' is given twice"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add(key.value)
            return super().construct_mapping(node, deep)

        def construct_integer(self, node: yaml.ScalarNode) -> int | str:
            """A decimal number; YAML 1.1 also has 010 for 8 and 1:30 for 90, which stay text here."""
            return int(node.value) if DECIMAL.fullmatch(node.value) else node.value

        def construct_decimal(self, node: yaml.ScalarNode) -> float | str:
            return node.value if ":" in node.value else self.construct_yaml_float(node)

    Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_integer)
    Loader.add_constructor("tag:yaml.org,2002:float", Loader.construct_decimal)
    Loader.add_constructor("tag:yaml.org,2002:timestamp", Loader.construct_yaml_str)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except RecursionError:
        raise ConfigError(f"{path}: not valid YAML: nested too deeply") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path}: expected sections such as 'model:', found a value of type {type(content).__name__}"
        )
    return content


def nearest(name: str, candidates: list[str]) -> str:
    """A hint for a misspelt name: the nearest right one, or all of them."""
    close = difflib.get_close_matches(name, candidates, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"there are: {', '.join(candidates)}"


def _merge(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _merge(value, changes[name])
        if isinstance(value, dict) and isinstance(changes.get(name), Mapping)
        else changes.get(name, value)
        for name, value in base.items()
    }


def _named(mapping: Mapping[str, Any], type_: Any, where: str, prefix: str) -> dict[str, Any]:
    """``mapping`` with its fields called as ``type_`` calls them."""
    types, named = get_type_hints(type_), dict[str, Any]()
    for given, value in mapping.items():
        name = underscored(str(given))
        if name not in types:
            raise ConfigError(f"{where}: unknown field '{prefix}{given}'; {nearest(name, list(types))}")
        if name in named:
            raise ConfigError(f"{where}: '{prefix}{name}' is given twice, once with hyphens; leave one out")
        if dataclasses.is_dataclass(types[name]):
            if not isinstance(value, Mapping):
                raise ConfigError(
                    f"{where}: '{prefix}{name}' is a section; expected fields under it, found {value!r}"
                )
            value = _named(value, types[name], where, f"{prefix}{name}.")
        if isinstance(value, str) and isinstance(types[name], type) and issubclass(types[name], Choice):
            value = underscored(value)
            if value not in list(types[name]):
                hint = nearest(value, list(types[name]))
                raise ConfigError(f"{where}: {prefix}{name}: Invalid enum value '{value}'; {hint}")
        named[name] = value
    return named
