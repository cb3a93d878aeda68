"""Jinja for templates of others: what chat templates need and no more, of nothing but what they are given."""

import json
import time
from collections.abc import Iterable, Iterator
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateSyntaxError
from jinja2.runtime import Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MOST_STEPS = 10_000
"""Rounds of loops and calls of macros in one rendering."""
MOST_CHARACTERS = 1_000_000
"""Of each text, or of all texts in one list, that is put together in one."""
LARGEST_NUMBER = 1_000_000
MOST_SECONDS = 5.0
"""Of one rendering, looked at in each round and call."""
_NAMES = (
    "Template Output TemplateData Const Name NSRef Getattr Getitem Slice Call Keyword Filter Test For If Assign "
    "AssignBlock Macro CallBlock Break Continue CondExpr And Or Not Compare Operand Add Sub Mul Div FloorDiv Mod Neg "
    "Pos Concat List Tuple Dict Pair"
)
NODES = tuple(getattr(nodes, name) for name in _NAMES.split())
"""What a template may be made of."""
METHODS: dict[type, frozenset[str]] = {
    str: frozenset(
        "capitalize count endswith find isdigit lower lstrip removeprefix removesuffix rstrip startswith strip "  # noqa: SIM905
        "title upper".split()
    ),
    dict: frozenset(("get", "items", "keys", "values")),
    **dict.fromkeys((int, float, bytes, list, tuple, range), frozenset[str]()),
}
"""Of what a template holds or makes."""
FILTERS = frozenset(
    "capitalize count d default dictsort first float int items last length list lower reject rejectattr reverse "  # noqa: SIM905
    "safe select selectattr string title trim upper".split()
)


class _Bounded(NodeTransformer):
    """Refuses what is not in ``NODES``; has rounds and calls counted, and lists and joined texts measured."""

    def visit(self, node: Any, *args: Any, **kwargs: Any) -> Any:
        """The node that stands in the place of ``node``."""
        if not isinstance(node, NODES):
            raise TemplateSyntaxError(f"{type(node).__name__.lower()} is not for chat templates", node.lineno)
        self.generic_visit(node)
        match node:
            case nodes.For():
                if node.recursive:
                    raise TemplateSyntaxError("a recursive loop is not for chat templates", node.lineno)
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


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """An environment for one template at a time; each rendering begins with ``begin``.

    What goes too far raises jinja2's ``SecurityError``, what it does not know a ``TemplateSyntaxError``.
    """

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        kept = {name: function for name, function in self.filters.items() if name in FILTERS}
        self.filters = {**kept, "join": self._join, "tojson": self._tojson}
        self.globals = {"namespace": self._namespace, "range": self._range, "raise_exception": _refuse}
        self.begin()

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

    def measured(self, value: Any) -> Any:
        """``value``, which with all that it holds is no more than is allowed."""
        held, characters, waiting = 0, 0, [value]
        while waiting:
            one = waiting.pop()
            held += 1
            characters += len(one) if isinstance(one, str) else 0
            if held > MOST_STEPS or characters > self._most_characters or isinstance(one, Namespace):
                raise SecurityError("it puts together a list that is too large")
            if isinstance(one, dict):
                waiting += [*one.keys(), *one.values()]
            elif isinstance(one, list | tuple):
                waiting += one
        return value

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
        """Sums of texts, of lists and of small numbers; other operations are for numbers alone."""
        if operator == "+" and isinstance(left, str) and isinstance(right, str):
            return self.concat((left, right))
        if operator == "+" and isinstance(left, list) and isinstance(right, list):
            return self.measured(left + right)
        for side in (left, right):
            if isinstance(side, Undefined):
                str(side + 0)  # says what is undefined
            if not isinstance(side, int | float) or abs(side) > LARGEST_NUMBER:
                kinds = "texts, lists and small numbers" if operator == "+" else "small numbers"
                raise SecurityError(f"{operator} is for {kinds}")
        return super().call_binop(context, operator, left, right)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """What the sandbox lets be seen, and of texts, lists and numbers only ``METHODS``."""
        for kind, allowed in METHODS.items():
            if isinstance(obj, kind) and attr not in allowed:
                return False
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:
        """Nothing is done for ``str.format``, which is no method of texts here."""

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _Bounded().visit(super()._parse(source, name, filename))

    def _namespace(self, **values: Any) -> Namespace:
        return Namespace(**self.measured(values))

    def _join(self, parts: Iterable[Any], separator: str = "") -> str:
        texts = [str(part) for part in parts]
        return self.concat(piece for text in texts for piece in (text, separator))[: -len(separator) or None]

    def _tojson(self, value: Any) -> str:
        return json.dumps(self.measured(value), ensure_ascii=False)

    def _range(self, *bounds: int) -> range:
        numbers = range(*bounds)
        if len(numbers) > MOST_STEPS:
            raise SecurityError("its loops are too long")
        return numbers


def _refuse(message: str) -> None:
    raise SecurityError(str(message))
