"""Jinja for templates of others: they see nothing but what they are given, end soon, and stay small."""

import time
from collections.abc import Iterable, Iterator
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MOST_STEPS = 30_000
"""Rounds of loops and calls of macros in one rendering."""
MOST_CHARACTERS = 1_000_000
"""Of each text that is put together in one."""
LARGEST_NUMBER = 1_000_000
MOST_SECONDS = 5.0
"""Of one rendering."""
STRING_METHODS = frozenset(
    "capitalize count find isdigit lower lstrip removeprefix removesuffix rstrip split splitlines startswith "  # noqa: SIM905
    "endswith strip title upper".split()
)
FILTERS = frozenset(
    "capitalize count d default dictsort e escape first float int items join last length list lower map "  # noqa: SIM905
    "reject rejectattr reverse safe select selectattr sort string title tojson trim unique upper".split()
)


class _Counted(NodeTransformer):
    """Has every round and call counted, and every list and joined text measured."""

    def visit(self, node: Any, *args: Any, **kwargs: Any) -> Any:
        """The node that stands in the place of ``node``."""
        self.generic_visit(node)
        match node:
            case nodes.For():
                if node.recursive:
                    raise SecurityError("it has a recursive loop")
                node.iter = _call("rounds", node.iter)
            case nodes.Macro() | nodes.CallBlock():
                node.body.insert(0, nodes.ExprStmt(_call("step")))
            case nodes.Concat():
                return _call("joined", nodes.List(node.nodes))
            case nodes.List() | nodes.Dict():
                return _call("measured", node)
            case nodes.Tuple(ctx="load"):
                return _call("measured", node)
            case _:
                pass
        return node


def _call(name: str, *arguments: Any) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(name), list(arguments), [], None, None)


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """An environment for one template at a time; each rendering begins with ``begin``.

    What goes too far raises jinja2's ``SecurityError``.
    """

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        self.filters = {name: function for name, function in self.filters.items() if name in FILTERS}
        self.filters["join"] = self._join
        kept = self.globals["namespace"]
        self.globals = {"namespace": kept, "range": self._range, "raise_exception": _refuse}
        self.begin()

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _Counted().visit(super()._parse(source, name, filename))

    def begin(self, characters: int = 0) -> None:
        """Allow one more rendering, of messages that have so many ``characters``."""
        self._steps_left, self._most_characters = MOST_STEPS, MOST_CHARACTERS + 2 * characters
        self._deadline = time.monotonic() + MOST_SECONDS

    def step(self) -> None:
        """Count one round or call."""
        self._steps_left -= 1
        if self._steps_left < 0:
            raise SecurityError(f"it takes more than {MOST_STEPS:,} steps")
        if time.monotonic() > self._deadline:
            raise SecurityError(f"it takes longer than {MOST_SECONDS:g} s")

    def rounds(self, values: Iterable[Any]) -> Iterator[Any]:
        """Each of ``values``, counted."""
        for value in values:
            self.step()
            yield value

    def measured(self, container: Any) -> Any:
        """A list, tuple or mapping that holds no more than is allowed, counted with all that its members hold."""
        held, waiting = 0, [container]
        while waiting:
            one = waiting.pop()
            held += 1
            if held > MOST_STEPS or isinstance(one, Namespace):
                raise SecurityError("it puts together a list that is too large")
            if isinstance(one, dict):
                waiting += one.values()
            elif isinstance(one, list | tuple):
                waiting += one
        return container

    def joined(self, parts: Iterable[Any]) -> str:
        """Texts one after the other, as ``~`` has it."""
        return self.concat(map(str, parts))

    def concat(self, parts: Iterable[str]) -> str:
        """Texts one after the other, at most as long as is allowed."""
        found: list[str] = []
        length = 0
        for part in parts:
            found.append(part)
            length += len(part)
            if length > self._most_characters:
                raise SecurityError(f"it writes more than {self._most_characters:,} characters")
        return "".join(found)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Sums of small numbers, lists and texts; other products are for numbers alone."""
        if operator == "+" and isinstance(left, str) and isinstance(right, str):
            return self.concat((left, right))
        if operator == "+" and isinstance(left, list) and isinstance(right, list):
            return self.measured(left + right)
        if not all(isinstance(side, int | float) and abs(side) < LARGEST_NUMBER for side in (left, right)):
            kinds = "texts, lists and small numbers" if operator == "+" else "small numbers"
            raise SecurityError(f"{operator} is for {kinds}")
        return super().call_binop(context, operator, left, right)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """What the sandbox lets be seen, and of texts no method that makes long ones of short ones."""
        if isinstance(obj, str) and attr not in STRING_METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:
        """Nothing is done for ``str.format``, which is no method of texts here."""

    def _join(self, parts: Iterable[Any], separator: str = "") -> str:
        """The ``join`` filter."""
        texts = [str(part) for part in parts]
        return self.concat(piece for text in texts for piece in (text, separator))[: -len(separator) or None]

    def _range(self, *bounds: int) -> range:
        numbers = range(*bounds)
        if len(numbers) > MOST_STEPS:
            raise SecurityError("its loops are too long")
        return numbers


def _refuse(message: str) -> None:
    raise SecurityError(str(message))
