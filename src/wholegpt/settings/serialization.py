"""Conversion of configurations from and to plain mappings and YAML.

msgspec and yaml are imported inside the functions, because the help of the command line needs neither.
"""

import dataclasses
import difflib
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from wholegpt.errors import ConfigError, RenamedSettingWarning
from wholegpt.settings.choices import Choice, underscored

T = TypeVar("T")
DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9_]*)")

RENAMED = {
    "model.experts": "model.n_experts",
    "data.control_omitted": "data.control_dropout",
    "data.licence": "data.license",
    "windows.shortest": "windows.min_length",
    "training.average_decay": "training.ema_decay",
    "training.recompute": "training.activation_checkpointing",
}
"""Former names of settings and their present ones. Files with former names still open."""
RENAMED_VALUES = {"training.activation_checkpointing": {"nothing": "none"}}
"""Former values of settings, by the present names of the settings."""

SYNONYMS = {
    "lr": "learning_rate",
    "layers": "n_layers",
    "n_layer": "n_layers",
    "num_layers": "n_layers",
    "heads": "n_heads",
    "n_head": "n_heads",
    "num_heads": "n_heads",
    "n_embd": "d_model",
    "width": "d_model",
    "hidden_size": "d_model",
    "block_size": "context_length",
    "context": "context_length",
    "seq_len": "context_length",
    "max_iters": "steps",
    "step": "steps",
    "n_steps": "steps",
    "num_steps": "steps",
    "max_steps": "steps",
    "iterations": "steps",
    "num_epochs": "epochs",
    "batch": "batch_size",
    "warmup": "warmup_steps",
    "warmup_iters": "warmup_steps",
    "grad_clip": "gradient_clip",
    "gradient_accumulation_steps": "micro_batch_size",
    "grad_accum": "micro_batch_size",
    "fp16": "dtype",
    "bf16": "dtype",
    "compile": "execution",
    "eval_interval": "every",
    "lora_r": "rank",
    "lora_rank": "rank",
    "val_split": "validation_fraction",
    "test_size": "validation_fraction",
}
"""Names of settings in other programs, and their fields here."""


def to_mapping(config: Any) -> dict[str, Any]:
    """Return a config dataclass as nested plain dicts, ready for JSON or YAML."""
    import msgspec

    return msgspec.to_builtins(config)


def from_mapping(mapping: Mapping[str, Any], base: T, where: str = "config") -> T:
    """Return ``base`` with the fields in the nested ``mapping`` replaced.

    Hyphens and underscores in names are equivalent. Former names of settings are accepted with a
    ``RenamedSettingWarning``.

    Raises ``ConfigError`` that names the field for an unknown name (with the closest valid one), a value of the wrong
    type, or a setting given by both its former and its present name.
    """
    import msgspec

    named, renamed = _named(mapping, type(base), where, prefix="")
    if renamed:
        changes = ", ".join(f"{old} is now {new}" for old, new in renamed.items())
        warnings.warn(f"{where}: renamed settings: {changes}", RenamedSettingWarning, stacklevel=2)
    merged = _merge(to_mapping(base), named)
    try:
        return msgspec.convert(merged, type(base), strict=False)
    except msgspec.ValidationError as error:
        name, problem = conversion_problem(error)
        raise ConfigError(f"{where}: {name or 'the configuration'}: {problem}") from None


TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "array": "a list",
    "object": "a mapping",
    "null": "nothing",
}
"""What msgspec's names of types are called in messages."""


def conversion_problem(error: Exception) -> tuple[str, str]:
    """Return the name of the field that msgspec could not convert ("" for the whole), and why."""
    problem, _, location = str(error).replace("`", "'").partition(" - at ")
    name = location.strip("'").removeprefix("$.")
    if found := re.fullmatch(r"Expected '(\w+)', got '(\w+)'", problem):
        expected, got = (TYPES.get(one, one) for one in found.groups())
        return name, f"expected {expected}, found {got}"
    return name, problem[:1].lower() + problem[1:]


def to_yaml(config: Any) -> str:
    """Return a config as YAML, in the order of its fields."""
    import yaml

    return yaml.safe_dump(to_mapping(config), sort_keys=False, allow_unicode=True)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file. Raises ``ConfigError`` with file and line, also for duplicate keys."""
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
            """Accept decimal numbers only: in YAML 1.1, 010 is 8 and 1:30 is 90; here they stay text."""
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
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f" in line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}: not valid YAML{line}: {error.problem or error.context}") from None
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
    """Return a hint for an unknown name: the closest candidate, or all of them."""
    longer = [one for one in candidates if one.startswith(f"{name}-")]
    close = longer or difflib.get_close_matches(name, candidates, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"there are: {', '.join(candidates)}"


def _merge(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _merge(value, changes[name])
        if isinstance(value, dict) and isinstance(changes.get(name), Mapping)
        else changes.get(name, value)
        for name, value in base.items()
    }


def present_names(
    section: str, fields: Mapping[str, Any], where: str
) -> tuple[dict[str, Any], dict[str, str]]:
    """Replace former names and values in the ``fields`` of a ``section`` of the configuration.

    Return the fields, and what was replaced: the former name of each setting (with its value, if that was renamed as
    well) and the present one. Raises ``ConfigError`` if a setting is given by both names.
    """
    present, renamed = dict[str, Any](), dict[str, str]()
    given = {f"{section}.{underscored(str(name))}" for name in fields}
    for name, value in fields.items():
        old = f"{section}.{underscored(str(name))}"
        new = RENAMED.get(old, old)
        if new != old:
            name = new.removeprefix(f"{section}.")
            if name in present:
                raise ConfigError(f"{where}: '{old}' is given twice, once with hyphens; leave one out")
            if new in given:
                raise ConfigError(
                    f"{where}: '{old}' is the former name of '{new}', and both are given; leave out '{old}'"
                )
        values = RENAMED_VALUES.get(new, {})
        if isinstance(value, str) and value in values:
            old, new, value = f"{old}: {value}", f"{new}: {values[value]}", values[value]
        if old != new:
            renamed[old] = new
        present[name] = value
    return present, renamed


def _named(
    mapping: Mapping[str, Any], type_: Any, where: str, prefix: str
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return ``mapping`` with the present names of the fields of ``type_``, and the renamed settings in it."""
    renamed = dict[str, str]()
    if prefix:
        mapping, renamed = present_names(prefix.removesuffix("."), mapping, where)
    types, named = get_type_hints(type_), dict[str, Any]()
    for given, value in mapping.items():
        name = underscored(str(given))
        if name not in types:
            hint = nearest(name, list(types))
            section, _, field = name.partition(".")
            if not prefix and (
                meant := [name] if field and section in types else settings_named(name, type_)
            ):
                section, _, field = meant[0].partition(".")
                hint = f"the setting is {' or '.join(meant)}, as in {{'{section}': {{'{field}': {value!r}}}}}"
            raise ConfigError(f"{where}: unknown field '{prefix}{given}'; {hint}")
        if name in named:
            raise ConfigError(f"{where}: '{prefix}{name}' is given twice, once with hyphens; leave one out")
        if dataclasses.is_dataclass(types[name]):
            if not isinstance(value, Mapping):
                raise ConfigError(
                    f"{where}: '{prefix}{name}' is a section; expected fields in it, found {value!r}"
                )
            value, old_names = _named(value, types[name], where, f"{prefix}{name}.")
            renamed |= old_names
        named[name] = _known_choice(value, types[name], f"{where}: {prefix}{name}")
    return named, renamed


def settings_named(name: str, config: type) -> list[str]:
    """Return the settings, as SECTION.FIELD, that a name without a section means here or in other programs."""
    field = SYNONYMS.get(name, name)
    sections = {
        one: type_ for one, type_ in get_type_hints(config).items() if dataclasses.is_dataclass(type_)
    }
    return [f"{one}.{field}" for one, type_ in sections.items() if field in get_type_hints(type_)]


def _known_choice(value: Any, type_: Any, where: str) -> Any:
    """Return ``value`` as its ``Choice`` spells it. Raises ``ConfigError`` for an unknown one; other types pass."""
    if get_origin(type_) is tuple and isinstance(value, (list, tuple)):
        return [_known_choice(one, get_args(type_)[0], where) for one in value]
    if not (isinstance(value, str) and isinstance(type_, type) and issubclass(type_, Choice)):
        return value
    value = underscored(value)
    if value not in list(type_):
        raise ConfigError(f"{where}: there is no value '{value}'; {nearest(value, list(type_))}")
    return value
