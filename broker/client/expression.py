"""Filters as people write them: ``parent == "RRLyrae" and parentProbability >= 0.9 and detections > 20``.

A small language over the documented fields of annotations (docs/watchlists.md), with Python's grammar of expressions.
The text is parsed, never run: each node of its tree has to be one of those known here, is checked for its kind, and
is evaluated over arrays, many annotations at once. Length, size and depth are bounded, and there are no loops and no
powers, so that the cost of an annotation is bounded, too.
"""

from __future__ import annotations

import ast
import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from broker import sky
from broker.client.fields import FIELDS, PROBABILITY, Columns, Kind
from broker.errors import ConfigurationError
from broker.publish.annotation import PublishedAnnotation
from broker.taxonomy import OUTPUT_NAMES, PARENTS

MAX_LENGTH: Final = 2000
"""Characters of an expression."""
MAX_NODES: Final = 300
MAX_DEPTH: Final = 30


_NAMES: Final = {"class": OUTPUT_NAMES, "parent": tuple(PARENTS), "answer": (*OUTPUT_NAMES, *PARENTS)}
"""Texts that a field can be, of those where another can only be a mistake."""
_CONSTANTS: Final = {"true": True, "false": False}
_FUNCTIONS: Final = ("abs", "cone", "log10", "missing", "probability")
_CLASS: Final = "klass"
"""What ``class`` is for Python's parser, to which it is a keyword; as long, so that positions stay."""
_SCANNED: Final = re.compile(
    r"""(?P<text>"[^"]*"|'[^']*')|(?P<space>\s)|\b(?P<name>class|klass)\b|(?P<odd>[#\\"'])"""
    r"""|(?P<number>(?<![\w.])(?>\d[\d._]*(?:[eE][-+]?\d+)?)(?=[A-Za-z_]))"""
)


class ExpressionError(ConfigurationError):
    """An expression that cannot be meant; the message begins with where."""

    def __init__(self, reason: str, position: int) -> None:
        super().__init__(f"character {position + 1}: {reason}")
        self.reason = reason
        self.position = position
        """Of the character, from 0."""


class Expression:
    """An expression that is true or false of an annotation; a ``where`` of a Subscription.

    Raises ExpressionError, with the position, where it cannot be meant.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        compiler = _Compiler(text)
        self._root = compiler.root
        self.fields = frozenset(compiler.fields)
        """The fields of annotations that it uses; ``probability:NAME`` for the probability of one class or parent."""

    def __call__(self, annotation: PublishedAnnotation) -> bool:
        """Whether it is true of an annotation."""
        return bool(self.mask(Columns.of([annotation]))[0])

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Whether it is true of an annotation with these values of ``fields``; None is missing."""
        return bool(self.mask(Columns(1, lambda name: [values[name]]))[0])

    def mask(self, columns: Columns) -> NDArray[np.bool_]:
        """(n,) of which annotations it is true."""
        with np.errstate(all="ignore"):
            found = self._root(columns)
        return np.broadcast_to(np.asarray(found, np.bool_), (columns.count,))

    def __repr__(self) -> str:
        return f"Expression({self.text!r})"


_Values = Callable[[Columns], Any]
"""What a node gives: an array (n,), or one value for all."""
_COMPARED: Final[Mapping[type[ast.cmpop], Callable[[Any, Any], Any]]] = {
    ast.Eq: np.equal,
    ast.NotEq: np.not_equal,
    ast.Lt: np.less,
    ast.LtE: np.less_equal,
    ast.Gt: np.greater,
    ast.GtE: np.greater_equal,
}
_CALCULATED: Final[Mapping[type[ast.operator], Callable[[Any, Any], Any]]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
}


class _Compiler:
    """Checks the tree of an expression, and makes functions of arrays of it."""

    def __init__(self, text: str) -> None:
        self.fields: set[str] = set()
        if not text.strip():
            raise ExpressionError("an expression is needed, such as probability > 0.9", 0)
        if len(text) > MAX_LENGTH:
            raise ExpressionError(f"{len(text):,} characters; {MAX_LENGTH:,} are the most", MAX_LENGTH)
        self._text = text
        self._start = len(text) - len(text.lstrip())
        tree = self._parsed()
        if (nodes := sum(1 for _ in ast.walk(tree))) > MAX_NODES:
            raise ExpressionError(f"{nodes} parts; {MAX_NODES} are the most", 0)
        kind, self.root = self._node(tree, 0)
        if kind is not Kind.FLAG:
            raise ExpressionError(f"the whole is {kind.value}, and has to be true or false", self._start)

    def _parsed(self) -> ast.expr:
        def same_length(found: re.Match[str]) -> str:
            match found.lastgroup:
                case "space":
                    return " "
                case "name" if found[0] == "class":
                    return _CLASS
                case "text" if found[0].isprintable():
                    return found[0]
                case "text":
                    reason = "a text has printable characters only"
                case "number":
                    reason = "a letter follows a number: write a space between"
                case "odd" if found[0] in "\"'":
                    reason = f"a {found[0]} without its end"
                case _:
                    reason = f"{found[0]} means nothing here"
            raise ExpressionError(reason, found.start())

        self._python = python = _SCANNED.sub(same_length, self._text).strip()
        try:
            return ast.parse(python, mode="eval").body
        except SyntaxError as error:
            at = (error.offset or 0) - 1
            if not 0 <= at < len(python):
                raise ExpressionError("it ends too early", self._start + len(python)) from None
            reason = (error.msg or "invalid syntax").replace(_CLASS, "class")
            hint = "; write == to compare" if python[at : at + 1] == "=" else ""
            raise ExpressionError(reason + hint, self._start + at) from None
        except (RecursionError, MemoryError, ValueError):
            raise ExpressionError("too deep", self._start) from None

    def _fail(self, reason: str, node: ast.expr) -> ExpressionError:
        # Python counts bytes.
        before = self._python.encode()[: node.col_offset].decode(errors="ignore")
        return ExpressionError(reason, self._start + len(before))

    def _node(self, node: ast.expr, depth: int) -> tuple[Kind, _Values]:
        if depth > MAX_DEPTH:
            raise self._fail(f"more than {MAX_DEPTH} parts within each other", node)
        match node:
            case ast.BoolOp(op, operands):
                parts = [self._of(Kind.FLAG, one, depth) for one in operands]
                both = np.logical_and if isinstance(op, ast.And) else np.logical_or
                return Kind.FLAG, lambda c: _reduced(both, [part(c) for part in parts])
            case ast.UnaryOp(ast.Not(), operand):
                inner = self._of(Kind.FLAG, operand, depth)
                return Kind.FLAG, lambda c: np.logical_not(inner(c))
            case ast.UnaryOp(ast.USub() | ast.UAdd() as op, operand):
                inner, sign = self._of(Kind.NUMBER, operand, depth), -1.0 if isinstance(op, ast.USub) else 1.0
                return Kind.NUMBER, lambda c: sign * inner(c)
            case ast.BinOp(left, op, right) if type(op) in _CALCULATED:
                first, second = (self._of(Kind.NUMBER, one, depth) for one in (left, right))
                calculated = _CALCULATED[type(op)]
                return Kind.NUMBER, lambda c: calculated(first(c), second(c))
            case ast.Compare(left, ops, others):
                sides = [left, *others]
                steps = [self._compared(a, op, b, depth) for a, op, b in zip(sides[:-1], ops, sides[1:], strict=True)]
                return Kind.FLAG, lambda c: _reduced(np.logical_and, [step(c) for step in steps])
            case ast.Call(ast.Name(name), arguments, []) if name in _FUNCTIONS:
                return self._call(name, arguments, node, depth)
            case ast.Name(name):
                return self._field("class" if name == _CLASS else name, node)
            case ast.Constant(bool() as flag):
                return Kind.FLAG, lambda c: flag
            case ast.Constant(int() | float() as number):
                value = self._number(number, node)
                return Kind.NUMBER, lambda c: value
            case ast.Constant(str() as text):
                if not text:
                    raise self._fail("an empty text equals nothing; missing(...) tells what is not there", node)
                return Kind.TEXT, lambda c: text
            case ast.BinOp(_, ast.BitAnd() | ast.BitOr(), _):
                raise self._fail("write and, or", node)
            case ast.Call(ast.Name(name)):
                raise self._fail(f"no function {name}; there are {', '.join(_FUNCTIONS)}", node)
        raise self._fail("this is no part of an expression here (docs/watchlists.md)", node)

    def _number(self, number: float, node: ast.expr) -> float:
        try:
            value = float(number)
        except OverflowError:
            value = math.inf
        if not math.isfinite(value):
            raise self._fail("no such number", node)
        return value

    def _of(self, wanted: Kind, node: ast.expr, depth: int) -> _Values:
        kind, values = self._node(node, depth + 1)
        if kind is not wanted:
            raise self._fail(f"this is {kind.value}, and has to be {wanted.value}", node)
        return values

    def _field(self, name: str, node: ast.expr) -> tuple[Kind, _Values]:
        if name in _CONSTANTS:
            flag = _CONSTANTS[name]
            return Kind.FLAG, lambda c: flag
        if name not in FIELDS:
            near = difflib.get_close_matches(name[:100], [*FIELDS, *_FUNCTIONS], n=1)
            hint = f"; did you mean {near[0]}?" if near else "; a text is in quotes"
            raise self._fail(f"no field {name[:100]}{hint}", node)
        self.fields.add(name)
        return FIELDS[name][0], lambda c: c[name]

    def _compared(self, left: ast.expr, op: ast.cmpop, right: ast.expr, depth: int) -> _Values:
        if isinstance(op, ast.In | ast.NotIn):
            return self._member(left, isinstance(op, ast.NotIn), right, depth)
        if type(op) not in _COMPARED:
            raise self._fail("write == or !=", right)
        kind, first = self._node(left, depth + 1)
        second = self._of(kind, right, depth)
        if kind is Kind.TEXTS or (kind is not Kind.NUMBER and not isinstance(op, ast.Eq | ast.NotEq)):
            raise self._fail(f"{kind.value} is not compared so", right)
        for one, other in ((left, right), (right, left)):
            self._check_name(one, other)
        compared = _COMPARED[type(op)]
        if kind is Kind.FLAG:
            return lambda c: compared(first(c), second(c))
        return lambda c: _where_present(kind, compared, first(c), second(c))

    def _check_name(self, field: ast.expr, value: ast.expr) -> None:
        """Refuse a class that there is not: nothing would ever match, without a word."""
        if isinstance(field, ast.Name) and isinstance(value, ast.Constant):
            names = _NAMES.get("class" if field.id == _CLASS else field.id)
            if names is not None and value.value not in names:
                raise self._fail(f"{value.value!r} is none of {', '.join(names)}", value)

    def _member(self, left: ast.expr, negated: bool, right: ast.expr, depth: int) -> _Values:
        if isinstance(right, ast.Tuple | ast.List):
            kind, values = self._node(left, depth + 1)
            if kind not in (Kind.TEXT, Kind.NUMBER):
                raise self._fail(f"this is {kind.value}, and has to be a text or a number", left)
            constants = []
            for one in right.elts:
                if not isinstance(one, ast.Constant):
                    raise self._fail("a list has texts or numbers in it", one)
                self._of(kind, one, depth)
                self._check_name(left, one)
                constants.append(one.value)
            if not constants:
                raise self._fail("an empty list", right)
            among = np.array(constants, np.float64 if kind is Kind.NUMBER else np.str_)
            return lambda c: _where_present(kind, lambda v, _: np.isin(v, among) != negated, values(c), among[0])
        text = self._of(Kind.TEXT, left, depth)
        if not isinstance(left, ast.Constant):
            raise self._fail('give a text, as in "spectrum" in modalities', left)
        texts = self._of(Kind.TEXTS, right, depth)
        word = text(Columns(0, lambda _: ()))
        return lambda c: np.array([(word in one) != negated for one in texts(c)], np.bool_)

    def _call(self, name: str, arguments: list[ast.expr], node: ast.expr, depth: int) -> tuple[Kind, _Values]:
        wanted = 3 if name == "cone" else 1
        if len(arguments) != wanted:
            raise self._fail(f"{name} takes {wanted} value{'s' if wanted > 1 else ''}", node)
        if name == "cone":
            return self._cone(arguments, node, depth)
        argument = arguments[0]
        if name == "probability":
            one = argument.value if isinstance(argument, ast.Constant) else None
            if one not in (*OUTPUT_NAMES, *PARENTS):
                raise self._fail(f"give one of {', '.join((*OUTPUT_NAMES, *PARENTS))}, in quotes", argument)
            column = f"{PROBABILITY}{one}"
            self.fields.add(column)
            return Kind.NUMBER, lambda c: c[column]
        if name == "missing":
            kind, values = self._node(argument, depth + 1)
            if kind is Kind.FLAG:
                raise self._fail("true or false is never missing", argument)
            return Kind.FLAG, lambda c: ~_present(kind, values(c))
        inner = self._of(Kind.NUMBER, argument, depth)
        function = np.abs if name == "abs" else np.log10
        return Kind.NUMBER, lambda c: function(inner(c))

    def _cone(self, arguments: list[ast.expr], node: ast.expr, depth: int) -> tuple[Kind, _Values]:
        given = []
        for one in arguments:
            signed = one.operand if isinstance(one, ast.UnaryOp) else one
            if not isinstance(signed, ast.Constant):
                raise self._fail("cone takes numbers: ra and dec in degrees, radius in arcsec", one)
            given.append(float(self._of(Kind.NUMBER, one, depth)(Columns(0, lambda _: ()))))
        ra, dec, radius = given
        if not (0.0 <= ra <= 360.0 and abs(dec) <= 90.0 and 0.0 < radius <= 180.0 * sky.ARCSEC):
            raise self._fail("no circle on the sky: ra and dec in degrees, radius in arcsec", node)
        self.fields |= {"ra", "dec"}
        place = np.array([ra]), np.array([dec])
        return Kind.FLAG, lambda c: sky.separation(c["ra"], c["dec"], *place) <= radius


def _reduced(both: Any, parts: Sequence[Any]) -> Any:
    found = parts[0]
    for part in parts[1:]:
        found = both(found, part)
    return found


def _present(kind: Kind, values: Any) -> Any:
    """Which values are there: a number that came out as infinite is, one that is NaN is not."""
    if kind is Kind.NUMBER:
        return ~np.isnan(values)
    if kind is Kind.TEXTS:
        return np.array([bool(one) for one in values], np.bool_)
    return np.not_equal(values, "")


def _where_present(kind: Kind, compared: Callable[[Any, Any], Any], first: Any, second: Any) -> Any:
    """No comparison with a missing value is true, != and ``not in`` included."""
    return compared(first, second) & _present(kind, first) & _present(kind, second)
