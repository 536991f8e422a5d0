"""The text form: reading a graph back. Literals only; nothing in a text is executed."""

from __future__ import annotations

import ast
import keyword
import math
import re
from collections.abc import Mapping
from dataclasses import fields
from enum import Enum
from typing import TYPE_CHECKING, Any, get_type_hints

from qcompiler.graph import EMPTY, Graph, Level, Node, Note
from qcompiler.op import Op, OpError
from qcompiler.ops import BY_KIND, Const, Input, Packing, Step, Window
from qcompiler.text import short_float, show_type
from qcompiler.types import DType, QParams, Scheme, Sym, TensorType, TupleType, Type, symbol

if TYPE_CHECKING:
    import torch

HEAD = re.compile(r"graph @(\w+)((?: \w+=\S+)*)(?: where (.*))? \{")
STATE = re.compile(r"state %([\w.]+) = %([\w.]+) from %([\w.]+)")
TYPE = re.compile(r"(\w+)\[(.*?)\](?: (q\(.*\)))?$")
REF = re.compile(r"(?<!['\"\w])%([\w.]+)")
MAX_POWER = 8  # of a symbol; a tensor of that many symbolic dimensions made one
RECORDS: dict[str, type] = {"window": Window, "packing": Packing, "scheme": Scheme}
ENUMS = {e.value: e for e in DType}
NUMBERS = ("inf", "nan")


def is_reserved(name: str) -> bool:
    """Whether a text reads the name as something else than a symbolic dimension."""
    return name in (*NUMBERS, *ENUMS) or keyword.iskeyword(name)


class ParseError(ValueError):
    """A text that is no graph; the message names the line."""


MALFORMED = (ParseError, OpError, ValueError, TypeError, LookupError, SyntaxError, AttributeError,
             AssertionError, OverflowError, RecursionError)  # fmt: skip
"""What reading a line raises that is none."""


def parse(text: str, constants: Mapping[str, torch.Tensor] | None = None) -> Graph:
    """The graph a text describes.

    constants: the values of everything written as '#hash' (see text.constants_of).
    Raises ParseError naming the line, what was expected and what was found.
    """
    reader = _Reader({} if constants is None else constants)
    for number, line in enumerate(text.splitlines(), 1):
        try:
            reader.line(line.strip())
        except MALFORMED as e:
            what = f"{type(e).__name__} {e}" if isinstance(e, KeyError) else e
            raise ParseError(f"line {number}: {what}\n  {line.strip()[:160]}") from e
    return reader.graph()


class _Reader:
    """One pass over the lines; every name is defined before it is used."""

    def __init__(self, constants: Mapping[str, torch.Tensor]) -> None:
        self.constants = constants
        self.nodes: dict[str, Node] = {}
        self.symbols: dict[str, Sym] = {}
        self.fields: dict[str, Any] = {}
        self.state: list[tuple[Node, Node]] = []
        self.initial: list[Node] = []
        self.closed = False

    def line(self, line: str) -> None:
        if not line or line.startswith("//"):
            return
        if self.closed:
            raise ParseError("expected nothing after the closing `}`")
        if line == "}":
            self.closed = True
            return
        if line.startswith("graph "):
            self.head(line)
        elif line.startswith("%"):
            self.node(line)
        elif line.startswith("state "):
            self.add_state(line)
        elif line.startswith("trees "):
            first, second = ast.literal_eval(line.removeprefix("trees "))
            self.fields["trees"] = (str(first), str(second))
        elif line.startswith(("inputs ", "return ")):
            key = "inputs" if line.startswith("inputs") else "outputs"
            self.fields[key] = tuple(self.ref(n) for n in REF.findall(line))
        else:
            raise ParseError("expected a node, state, inputs or return")

    def head(self, line: str) -> None:
        match = HEAD.fullmatch(line)
        if not match or match[1].upper() not in Level.__members__:
            levels = ", ".join(level.name.lower() for level in Level)
            raise ParseError(f"expected `graph @level {{` with one of {levels}")
        self.fields["level"] = Level[match[1].upper()]
        for pair in match[2].split():
            key, value = pair.split("=", 1)
            if key not in ("target", "recipe"):
                raise ParseError(f"unknown header field {key!r}")
            self.fields[key] = value
        for item in (match[3] or "").split(", "):
            if item:
                name, bounds = item.split(" in ")
                low, high = bounds.split("..")
                self.symbols[name] = symbol(name, int(low), int(high) if high else None)

    def ref(self, name: str) -> Node:
        if name not in self.nodes:
            raise ParseError(f"%{name} is used before it is defined")
        return self.nodes[name]

    def add_state(self, line: str) -> None:
        match = STATE.fullmatch(line)
        if not match:
            raise ParseError("expected `state %input = %output from %initial`")
        before, after, first = (self.ref(match[k]) for k in (1, 2, 3))
        self.state.append((before, after))
        self.initial.append(first)

    def node(self, line: str) -> None:
        name, kind, args, type_text, note = _split(line)
        if name in self.nodes:
            raise ParseError(f"%{name} is defined twice")
        type_ = self.type(type_text)
        inputs, attributes = self.call(args)
        op = self.op(kind, attributes, type_)
        found = op.type_of(inputs)
        if found != type_:
            raise ParseError(f"expected type {show_type(found)}, got {show_type(type_)}")
        self.nodes[name] = Node(op, inputs, type_, name, self.note(note))

    def call(self, args: str) -> tuple[tuple[Node, ...], list[ast.expr | ast.keyword]]:
        """Leading %references, then attributes as syntax."""
        call = ast.parse(f"f({REF.sub(lambda m: f'_ref({m[1]!r})', args)})", mode="eval").body
        assert isinstance(call, ast.Call)
        inputs: list[Node] = []
        rest: list[ast.expr | ast.keyword] = []
        for arg in call.args:
            if isinstance(arg, ast.Call) and _name(arg.func) == "_ref":
                inputs.append(self.ref(ast.literal_eval(arg.args[0])))
            else:
                rest.append(arg)
        return tuple(inputs), [*rest, *call.keywords]

    def op(self, kind: str, attributes: list[Any], type_: Type | None) -> Op:
        if kind not in BY_KIND:
            raise ParseError(f"unknown op {kind!r}; known: {', '.join(sorted(BY_KIND))}")
        cls = BY_KIND[kind]
        if cls is Input:
            assert isinstance(type_, TensorType)
            return Input(type_)
        if cls is Const:
            assert isinstance(type_, TensorType)
            return self.const(self.value(attributes[0]), type_)
        hints = get_type_hints(cls)
        given: dict[str, Any] = {}
        for a in attributes:
            if not isinstance(a, ast.keyword) or a.arg is None:
                raise ParseError(f"{kind}: expected attribute=value")
            if a.arg not in {f.name for f in fields(cls)}:  # type: ignore[arg-type]
                raise ParseError(f"{kind} has no attribute {a.arg!r}")
            given[a.arg] = _typed(self.value(a.value), hints[a.arg])
        return cls(**given)

    def const(self, value: Any, type_: TensorType) -> Const:
        import torch

        if isinstance(value, str):
            tensor = self.stored(value)
            if tuple(tensor.shape) != type_.shape or tensor.dtype != type_.dtype.torch:
                raise ParseError(f"constant {value} is {tensor.dtype}{list(tensor.shape)}")
        else:
            tensor = torch.tensor(value, dtype=type_.dtype.torch).reshape(type_.ints)
        made = Const(tensor, type_.quant)
        if isinstance(value, str) and value != f"#{made.digest}":
            raise ParseError(f"constant {value}: the stored value has hash {made.digest}")
        return made

    def stored(self, key: str) -> torch.Tensor:
        if not key.startswith("#") or key[1:] not in self.constants:
            raise ParseError(f"constant {key!r} is not among the constants given")
        return self.constants[key[1:]]

    def type(self, text: str) -> Type:
        text = text.strip()
        if text.startswith("("):
            return TupleType(tuple(self._tensor(t) for t in _items(text[1:-1])))
        return self._tensor(text)

    def _tensor(self, text: str) -> TensorType:
        match = TYPE.fullmatch(text.strip())
        if not match or match[1] not in ENUMS:
            raise ParseError(f"expected a type like float32[1,64], got {text!r}")
        shape = self.value(ast.parse(f"({match[2]},)" if match[2] else "()", mode="eval").body)
        quant = self.value(ast.parse(match[3], mode="eval").body) if match[3] else None
        return TensorType(shape, ENUMS[match[1]], quant)

    def note(self, text: str) -> Note:
        if not text:
            return EMPTY
        call = ast.parse(f"f({text})", mode="eval").body
        assert isinstance(call, ast.Call)
        given = {k.arg: self.value(k.value) for k in call.keywords if k.arg}
        if "stats" in given:
            from qcompiler.stats import Stats

            prefix = f"{given['stats']}."
            keys = [k for k in self.constants.keys() if k.startswith(prefix)]  # noqa: SIM118
            if not keys:
                raise ParseError(f"statistics {given['stats']} are not among the constants given")
            stored = {k.removeprefix(prefix): self.constants[k] for k in keys}
            given["stats"] = Stats.from_tensors(stored)
        return Note(**given)

    def value(self, node: ast.AST) -> Any:
        """A literal: numbers, strings, tuples, names of dtypes and dimensions, records."""
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Tuple):
            return tuple(map(self.value, node.elts))
        if isinstance(node, ast.List):
            return list(map(self.value, node.elts))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -self.value(node.operand)
        if isinstance(node, ast.Name):
            return self.name(node.id)
        if isinstance(node, ast.BinOp):
            return self.arithmetic(node)
        if isinstance(node, ast.Call):
            return self.record(node)
        raise ParseError(f"expected a literal, got {ast.unparse(node)!r}")

    def name(self, name: str) -> Any:
        if name in NUMBERS:
            return float(name)
        return ENUMS.get(name) or self.symbols.get(name) or name

    def arithmetic(self, node: ast.BinOp) -> Any:
        a, b = self.value(node.left), self.value(node.right)
        if isinstance(node.op, ast.Pow) and isinstance(b, int) and 1 <= b <= MAX_POWER:
            return math.prod([a] * (b - 1), start=a)
        if isinstance(node.op, ast.Add):
            return a + b
        if isinstance(node.op, ast.Sub):
            return a - b
        if isinstance(node.op, ast.Mult):
            return a * b
        if isinstance(node.op, ast.FloorDiv):
            return a // b
        raise ParseError(f"expected + - * // or a small power, got {ast.unparse(node)!r}")

    def record(self, node: ast.Call) -> Any:
        kind = _name(node.func)
        if kind == "floor":  # sympy writes a // b as floor(a/b)
            return self.floor(node.args[0])
        given = {k.arg: self.value(k.value) for k in node.keywords if k.arg}
        if kind == "q":
            return self.params([self.value(a) for a in node.args], given)
        if kind in RECORDS:
            cls = RECORDS[kind]
            hints = get_type_hints(cls)
            return cls(**{k: _typed(v, hints[k]) for k, v in given.items()})
        args = tuple(a for a in node.args if not isinstance(a, ast.Call))
        indices = tuple(self.value(a) for a in args)
        return Step(self.op(kind, list(node.keywords), None), indices)

    def floor(self, node: ast.expr) -> Any:
        above, below = self.fraction(node)
        if isinstance(below, int) and below == 1:
            raise ParseError(f"expected floor(a/b), got floor({ast.unparse(node)})")
        return above // below

    def fraction(self, node: ast.expr) -> tuple[Any, Any]:
        """Numerator and denominator: sympy writes (n - 1) // 2 as floor(n/2 - 1/2)."""
        if not isinstance(node, ast.BinOp):
            return self.value(node), 1
        (a, b), (c, d) = self.fraction(node.left), self.fraction(node.right)
        if isinstance(node.op, ast.Div):
            return a * d, b * c
        if isinstance(node.op, ast.Mult):
            return a * c, b * d
        if isinstance(node.op, ast.Add):
            return a * d + c * b, b * d
        if isinstance(node.op, ast.Sub):
            return a * d - c * b, b * d
        return self.value(node), 1

    def params(self, args: list[Any], given: dict[str, Any]) -> QParams:
        if len(args) not in (2, 4):
            expected = "q(scale, zero point) or q(scale, zero point, qmin, qmax)"
            raise ParseError(f"expected {expected}, got {len(args)} values")
        scale, zero_point, qmin, qmax = args if len(args) == 4 else (*args, *DType.INT32.limits)
        if isinstance(scale, str):
            scales = tuple(self.stored(scale).tolist())
        else:
            scales = tuple(map(_float32, scale if isinstance(scale, tuple) else (scale,)))
        return QParams(scales, zero_point, qmin, qmax, **given)

    def graph(self) -> Graph:
        missing = {"level", "inputs", "outputs"} - set(self.fields)
        if missing:
            raise ParseError(f"the text ends without its {', '.join(sorted(missing))}")
        if not self.closed:
            raise ParseError("the text ends without its closing `}`")
        return Graph(state=tuple(self.state), initial=tuple(self.initial), **self.fields)


def _float32(value: float) -> float:
    """A scale as written by short_float: float32's shortest text, or all digits of a float64."""
    import numpy as np

    near = float(np.float32(value))
    return near if short_float(near) == repr(float(value)) else float(value)


def _name(node: ast.expr) -> str:
    if not isinstance(node, ast.Name):
        raise ParseError(f"expected a name, got {ast.unparse(node)!r}")
    return node.id


def _typed(value: Any, hint: Any) -> Any:
    """Enums are written by their value, which may also be the name of a dimension."""
    if isinstance(hint, type) and issubclass(hint, Enum) and not isinstance(value, hint):
        return hint(repr(value) if isinstance(value, Sym) else value)
    if hint is float and isinstance(value, int):
        return float(value)
    return value


def _split(line: str) -> tuple[str, str, str, str, str]:
    """name, kind, arguments, type, note: the arguments end where their brackets close."""
    head = re.match(r"%([\w.]+) = (\w+)\(", line)
    if not head:
        raise ParseError("expected `%name = op(...) : type`")
    end = _closing(line, head.end())
    rest = re.match(r"\) : (.*?)(?:  # (.*))?$", line[end:])
    if not rest:
        raise ParseError("expected `: type` after the operands")
    return head[1], head[2], line[head.end() : end], rest[1], rest[2] or ""


def _closing(text: str, start: int) -> int:
    """The index of the bracket that closes the one before `start`; quotes are skipped."""
    depth, quote, k = 1, "", start
    while k < len(text):
        c = text[k]
        if quote:
            k += c == "\\"
            quote = "" if c == quote else quote
        elif c in "'\"":
            quote = c
        elif c in "([{":
            depth += 1
        elif c in ")]}":
            depth -= 1
            if depth == 0:
                return k
        k += 1
    raise ParseError("a bracket is not closed")


def _items(text: str) -> list[str]:
    """Split at commas outside brackets."""
    items, depth, start = [], 0, 0
    for k, c in enumerate(text):
        depth += (c in "([") - (c in ")]")
        if c == "," and depth == 0:
            items.append(text[start:k])
            start = k + 1
    return [*items, text[start:]]
