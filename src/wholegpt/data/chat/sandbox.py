"""A Jinja sandbox for chat templates from others, restricted to what such templates need.

The environment equals that of ``transformers``, without anything that could take unlimited time or memory.
"""

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from functools import wraps
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateRuntimeError, TemplateSyntaxError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner, Namespace
from jinja2.visitor import NodeTransformer
from markupsafe import Markup

MOST_STEPS = 10_000
"""Loop iterations and macro calls in one rendering."""
MOST_CHARACTERS = 1_000_000
"""Characters of each text, or of all texts in one list, that a template builds."""
LARGEST_NUMBER = 1_000_000
LARGEST_ARGUMENT, MOST_INDENT = 10_000, 16
"""Largest size argument of a filter, and largest indentation, which is repeated on every line."""
MOST_SECONDS = 5.0
"""Seconds for one rendering, checked at each iteration and call."""
_NAMES = (
    "Template Output TemplateData Const Name NSRef Getattr Getitem Slice Call Keyword Filter Test For If Assign "
    "AssignBlock Macro CallBlock FilterBlock With Scope "
    "Break Continue CondExpr And Or Not Compare Operand Add Sub Mul Div FloorDiv Mod Neg "
    "Pos Concat List Tuple Dict Pair"
)
NODES = tuple(getattr(nodes, name) for name in _NAMES.split())
"""Node types that a template may contain."""
METHODS: dict[type, frozenset[str]] = {
    str: frozenset(
        "capitalize casefold count endswith find index isalnum isalpha isascii isdecimal isdigit islower isnumeric "  # noqa: SIM905
        "isspace istitle isupper join lower lstrip partition removeprefix removesuffix replace rfind rindex "
        "rpartition rsplit rstrip split splitlines startswith strip swapcase title upper".split()
    ),
    dict: frozenset(("copy", "get", "items", "keys", "values")),
    list: frozenset(("copy", "count", "index")),
    tuple: frozenset(("count", "index")),
    **dict.fromkeys((int, float, bytes, range), frozenset[str]()),
}
"""Allowed methods of values in a template."""
FILTERS = frozenset(
    "abs attr batch capitalize count d default dictsort first float groupby indent int items last length list lower "  # noqa: SIM905
    "map max min reject rejectattr reverse round safe select selectattr slice sort string sum title trim truncate "
    "unique upper urlencode wordcount".split()
)
GROWING = {"indent": MOST_INDENT, **dict.fromkeys(("batch", "round", "slice", "truncate"), LARGEST_ARGUMENT)}
"""Filters whose result grows with a numeric argument, and the largest argument."""


class _Bounded(NodeTransformer):
    """Rejects nodes outside ``NODES``; adds counters to loops and calls, and size checks to lists and joined
    texts.
    """

    def visit(self, node: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the node that replaces ``node``."""
        if not isinstance(node, NODES):
            raise TemplateSyntaxError(
                f"{type(node).__name__.lower()} is not allowed in chat templates", node.lineno
            )
        self.generic_visit(node)
        match node:
            case nodes.For():
                if node.recursive:
                    raise TemplateSyntaxError(
                        "a recursive loop is not allowed in chat templates", node.lineno
                    )
                node.iter = _call("rounds", node.iter)
            case nodes.Macro() | nodes.CallBlock():
                node.body.insert(0, nodes.ExprStmt(_call("step")))
            case nodes.Assign(target=nodes.NSRef()):
                node.node = _call("measured", node.node)
            case nodes.Concat():
                return _call("joined", nodes.List(node.nodes))
            case nodes.List() | nodes.Dict() | nodes.Tuple(ctx="load"):
                return _call("measured", node)
            case _:
                pass
        return node


def _call(name: str, *arguments: Any) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(name), list(arguments), [], None, None)


class _Generation(Extension):
    """The ``{% generation %}`` block, which marks an answer for ``transformers``; here its content is
    rendered as is.
    """

    tags = {"generation"}  # noqa: RUF012 (as Jinja has it)

    def parse(self, parser: Parser) -> nodes.Node:
        """Parse the statements up to ``{% endgeneration %}``."""
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """An environment for one template at a time; call ``start_rendering`` before each rendering.

    Exceeding a limit raises jinja2's ``SecurityError``, an unsupported construct a ``TemplateSyntaxError``.
    """

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
        )
        kept = {name: self._bounded(name, one) for name, one in self.filters.items() if name in FILTERS}
        self.filters = {**kept, "join": self._join, "replace": self._replace, "tojson": self._tojson}
        self.globals = {
            "cycler": Cycler,
            "dict": self._dict,
            "joiner": Joiner,
            "namespace": self._namespace,
            "raise_exception": _refuse,
            "range": self._range,
            "strftime_now": self._strftime_now,
        }
        self.now = datetime.now()
        """The time that ``strftime_now`` formats."""
        self.start_rendering()

    def start_rendering(self, characters: int = 0) -> None:
        """Reset the limits for one more rendering, of messages with ``characters`` characters."""
        self._steps_left, self._most_characters = MOST_STEPS, MOST_CHARACTERS + 2 * characters
        self._deadline = time.monotonic() + MOST_SECONDS

    def step(self) -> None:
        """Count one iteration or call."""
        self._steps_left -= 1
        if self._steps_left < 0:
            raise SecurityError(f"it takes more than {MOST_STEPS:,} steps")
        if time.monotonic() > self._deadline:
            raise SecurityError(f"it takes longer than {MOST_SECONDS:g} s")

    def rounds(self, values: Iterable[Any]) -> Iterator[Any]:
        """Yield each of ``values`` and count it."""
        for value in values:
            self.step()
            yield value

    def measured(self, value: Any) -> Any:
        """Return ``value`` if its size, nested values included, is within the limits."""
        held, characters, waiting = 0, 0, [value]
        while waiting:
            one = waiting.pop()
            held += 1
            characters += len(one) if isinstance(one, str) else 0
            if held > MOST_STEPS or characters > self._most_characters or isinstance(one, Namespace):
                raise SecurityError("it builds a list that is too large")
            if isinstance(one, dict):
                waiting += [*one.keys(), *one.values()]
            elif isinstance(one, list | tuple):
                waiting += one
        return value

    def joined(self, parts: Iterable[Any]) -> str:
        """Concatenate texts for the operator ``~``."""
        return self.concat(map(str, parts))

    def concat(self, parts: Iterable[str]) -> str:
        """Concatenate texts up to the length limit."""
        found: list[str] = []
        length = 0
        for part in parts:
            found.append(part)
            length += len(part)
            if length > self._most_characters:
                raise SecurityError(f"it produces more than {self._most_characters:,} characters")
        return "".join(found)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Add texts, lists and small numbers; other operators accept numbers only."""
        if operator == "+" and (isinstance(left, Markup) or isinstance(right, Markup)):
            return self._kept(left + right)
        if operator == "+" and isinstance(left, str) and isinstance(right, str):
            return self.concat((left, right))
        if operator == "+" and isinstance(left, list) and isinstance(right, list):
            return self.measured(left + right)
        for side in (left, right):
            if isinstance(side, Undefined):
                str(side + 0)  # raises an error that names the undefined variable
            if not isinstance(side, int | float) or abs(side) > LARGEST_NUMBER:
                kinds = "texts, lists and small numbers" if operator == "+" else "small numbers"
                raise SecurityError(f"{operator} accepts only {kinds}")
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, callee: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a permitted function; check the size of what methods of texts return."""
        owner = getattr(callee, "__self__", None)
        if not isinstance(owner, str):
            return super().call(context, callee, *args, **kwargs)
        if callee.__name__ == "replace":
            return self._replace(owner, *args, **kwargs)
        if callee.__name__ == "join":
            return self._join(*args, separator=owner)
        return self._kept(super().call(context, callee, *args, **kwargs))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Return whether the sandbox permits an attribute; of texts, lists and numbers only ``METHODS``."""
        for kind, allowed in METHODS.items():
            if isinstance(obj, kind) and attr not in allowed:
                return False
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:
        """Do nothing: ``str.format`` is not available."""

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _Bounded().visit(super()._parse(source, name, filename))

    def _bounded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a filter with a size check of its result."""

        @wraps(function)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            for one in (*args[1:], *kwargs.values()) if name in GROWING else ():
                size = abs(one) if isinstance(one, int | float) else len(one) if isinstance(one, str) else 0
                if size > GROWING[name]:
                    raise SecurityError(f"{name} takes at most {GROWING[name]:,}")
            return self._kept(function(*args, **kwargs))

        return bounded

    def _kept(self, value: Any) -> Any:
        """Return ``value`` if it is within the size limits; check the items of an iterator one by one."""
        if isinstance(value, str):
            if len(value) > self._most_characters:
                raise SecurityError(f"it produces more than {self._most_characters:,} characters")
            return value
        if isinstance(value, list | tuple | dict):
            return self.measured(value)
        return self._items(value) if isinstance(value, Iterator) else value

    def _items(self, values: Iterator[Any]) -> Iterator[Any]:
        characters = 0
        for value in self.rounds(values):
            characters += len(value) if isinstance(value, str) else 0
            if characters > self._most_characters:
                raise SecurityError("it builds a list that is too large")
            yield self._kept(value)

    def _dict(self, *args: Any, **values: Any) -> dict[Any, Any]:
        return self.measured(dict(*args, **values))

    def _namespace(self, *args: Any, **values: Any) -> Namespace:
        held = self.measured(dict(*args, **values))
        if any(str(name).startswith("_") for name in held):
            raise SecurityError("names in a namespace must not start with an underscore")
        return Namespace(held)

    def _join(self, parts: Iterable[Any], separator: str = "", attribute: str | int | None = None) -> str:
        if attribute is not None:
            parts = [self.getitem(part, attribute) for part in parts]
        texts = [str(part) for part in self.rounds(parts)]
        return self.concat(piece for text in texts for piece in (text, separator))[: -len(separator) or None]

    def _replace(self, text: Any, old: Any, new: Any, count: int | None = None) -> str:
        text, old, new, most = str(text), str(old), str(new), -1 if count is None else count
        found = text.count(old) if most < 0 else min(most, text.count(old))
        if len(text) + found * len(new) > self._most_characters:
            raise SecurityError(f"it produces more than {self._most_characters:,} characters")
        return text.replace(old, new, most)

    def _tojson(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        for one in (indent, *(separators or ())):
            if (one if isinstance(one, int) else len(one or "")) > MOST_INDENT:
                raise TypeError(f"tojson: indent and separators are at most {MOST_INDENT}")
        return json.dumps(
            self.measured(value),
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    def _strftime_now(self, form: str) -> str:
        if len(form) > LARGEST_ARGUMENT or re.search(r"%[^a-zA-Z%]*\d{3}", form):
            raise SecurityError("strftime_now accepts only short formats")
        return self.now.strftime(form)

    def _range(self, *bounds: int) -> range:
        numbers = range(*bounds)
        if len(numbers) > MOST_STEPS:
            raise SecurityError("its loops are too long")
        return numbers


def _refuse(message: str) -> None:
    raise TemplateRuntimeError(str(message))
