"""From a writer's Avro schema and the fields that are wanted to a program for ``machine.py``.

A program is an array of int64: instructions of four words (the operation and three operands), with the targets of a
union after it. Jumps are relative, so that programs can be laid one after another. Whatever is not wanted is stepped
over: runs of fields of one kind become one instruction. The encoding is that of Avro's specification 1.11,
"Binary encoding" (https://avro.apache.org/docs/1.11.1/specification/).
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from broker.avro.layout import NOTHING, Layout, RecordPlan
from broker.avro.machine import MAX_DEPTH, Kind, Op
from broker.avro.schema import AvroSchema, WriterSchema
from broker.errors import DecodeError

MAX_STEPS: Final = 50_000
"""Fields of all types, written out. LSST's largest schema has about 600."""
_MAX_PATH: Final = 200
"""Characters of a field's path that are told: a schema may have names of any length."""
PRIMITIVES: Final = frozenset({"null", "boolean", "int", "long", "float", "double", "bytes", "string"})
_READ: Final[dict[tuple[str, Kind], Op]] = {
    ("float", Kind.NUMBER): Op.FLOAT_NUMBER,
    ("double", Kind.NUMBER): Op.DOUBLE_NUMBER,
    ("int", Kind.NUMBER): Op.LONG_NUMBER,
    ("long", Kind.NUMBER): Op.LONG_NUMBER,
    ("boolean", Kind.NUMBER): Op.BOOLEAN_NUMBER,
    ("float", Kind.INTEGER): Op.FLOAT_INTEGER,
    ("double", Kind.INTEGER): Op.DOUBLE_INTEGER,
    ("int", Kind.INTEGER): Op.LONG_INTEGER,
    ("long", Kind.INTEGER): Op.LONG_INTEGER,
    ("boolean", Kind.INTEGER): Op.BOOLEAN_INTEGER,
    ("string", Kind.TEXT): Op.STRING_TEXT,
    ("bytes", Kind.TEXT): Op.STRING_TEXT,
    ("string", Kind.LABEL): Op.STRING_LABEL,
    ("bytes", Kind.LABEL): Op.STRING_LABEL,
    ("int", Kind.LABEL): Op.LONG_LABEL,
    ("long", Kind.LABEL): Op.LONG_LABEL,
    ("boolean", Kind.LABEL): Op.BOOLEAN_LABEL,
    ("float", Kind.LABEL): Op.FLOAT_LABEL,
    ("double", Kind.LABEL): Op.DOUBLE_LABEL,
}
_WORDS: Final = 4
_FIXED_SIZES: Final = {"null": 0, "boolean": 1, "float": 4, "double": 8}


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """How to read records of one writer's schema into the tables of one layout."""

    code: NDArray[np.int64]
    schema_name: str
    """Name of the record type, as its schema gives it."""
    least_size: int
    """Bytes that a record takes at least."""
    places: tuple[list[int], list[str]]
    """Where in ``code`` each field begins, ascending, and its path."""

    def place(self, position: int) -> str:
        """The field that the instruction at ``position`` reads."""
        starts, paths = self.places
        return paths[max(bisect.bisect_right(starts, position) - 1, 0)]


def compile_schema(schema: WriterSchema, layout: Layout) -> Program:
    """The program that reads ``layout`` from records of ``schema``.

    Raises DecodeError where the type of a wanted field cannot serve, or the schema is too large, too deep or
    recursive: no survey's is, and a program for it would be of any size.
    """
    compiler = _Compiler(schema.named)
    try:
        compiler.record(schema.root, layout.root, "", 0)
        compiler.emit(Op.END)
        least = compiler.least_size(schema.root)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
        raise DecodeError(f"not a valid Avro schema: {type(error).__name__}: {str(error)[:500]}") from error
    if least == 0:
        raise DecodeError("records of this schema have no bytes")
    return Program(np.array(compiler.code, np.int64), schema.name, least, (compiler.starts, compiler.paths))


class _Compiler:
    def __init__(self, named: dict[str, AvroSchema]) -> None:
        self.code: list[int] = []
        self.starts: list[int] = [0]
        self.paths: list[str] = ["the record"]
        self._named = named
        self._least: dict[str, int] = {}
        self._open: set[str] = set()
        self._last = -1
        """Where the last instruction is that more of the same may be added to; -1 for none."""
        self._steps = 0

    def emit(self, op: Op, *operands: int) -> int:
        self._last = -1
        self.code += [int(op), *operands, 0, 0, 0][:_WORDS]
        return len(self.code) - _WORDS

    def _step(self, path: str, depth: int) -> None:
        """Count a type on the way: named types within named types can stand for any number of fields."""
        if depth > MAX_DEPTH:
            raise DecodeError(f"the schema is recursive or nests deeper than {MAX_DEPTH} types, at {path[:_MAX_PATH]}")
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise DecodeError(f"the schema is too large: written out, its types have more than {MAX_STEPS} fields")

    def _resolve(self, schema: Any) -> Any:
        """A name to its definition, and ``{"type": ...}`` around another type to that."""
        while True:
            if isinstance(schema, str):
                if schema in PRIMITIVES:
                    return schema
                schema = self._named[schema]
            if isinstance(schema, list):
                return schema
            kind = schema["type"]
            if isinstance(kind, str) and kind in PRIMITIVES:
                return kind
            if kind in ("record", "error", "enum", "fixed", "array", "map"):
                return schema
            schema = kind

    def least_size(self, schema: Any) -> int:
        """Bytes that a value takes at least; 0 for a type whose values have none at all."""
        schema = self._resolve(schema)
        if isinstance(schema, str):
            return _FIXED_SIZES.get(schema, 1)
        if isinstance(schema, list) or schema["type"] in ("enum", "array", "map"):
            return 1
        name = schema["name"]
        if name not in self._least:
            if name in self._open:
                raise DecodeError(f"the schema is recursive: {name[:_MAX_PATH]} contains itself")
            self._open.add(name)
            if schema["type"] == "fixed":
                size = int(schema["size"])
                if size < 0:
                    raise DecodeError(f"the schema is not valid: {name[:_MAX_PATH]} has {size} bytes")
            else:
                size = sum(self.least_size(f["type"]) for f in schema["fields"])
            self._open.discard(name)
            self._least[name] = min(size, 1 << 40)
        return self._least[name]

    def record(self, schema: Any, place: RecordPlan | None, path: str, depth: int) -> None:
        """Read a record: what ``place`` wants of it, or nothing."""
        self._step(path, depth)
        here = {f["name"] for f in schema["fields"]}
        wanted: dict[str, tuple[int, int, Kind]] = {}
        if place is not None:
            if place.row is not None:
                self._start(path)
                self.emit(Op.ROW, *place.row)
            for names, table, column, kind in place.wanted:
                found = next((name for name in names if name in here), None)
                if found is None:
                    self.emit(Op.NULL, table, column, kind)
                else:
                    wanted[found] = (table, column, kind)
            for inner, inner_place in place.records.items():
                if inner not in here:
                    self._nulls(inner_place)
        for f in schema["fields"]:
            name, kind_of = f["name"], f["type"]
            where = f"{path}.{name}" if path else name
            if name in wanted:
                self._start(where)
                self._read(kind_of, wanted[name], where)
            elif place is not None and name in place.records:
                self._start(where)
                self._sub_record(kind_of, place.records[name], where, depth)
            elif place is not None and name in place.arrays:
                self._start(where)
                self._sub_array(kind_of, place.arrays[name], where, depth)
            else:
                self.skip(kind_of, where, depth)

    def skip(self, schema: Any, path: str, depth: int) -> None:
        """Step over a value."""
        self._step(path, depth)
        if (size := self._fixed_size(schema)) is not None:
            if size:
                self._skip_more(Op.SKIP_BYTES, path, (), size)
            return
        schema = self._resolve(schema)
        if isinstance(schema, str):
            self._skip_more(Op.SKIP_LONGS if schema in ("int", "long") else Op.SKIP_BLOBS, path, (), 1)
        elif isinstance(schema, list):
            self._skip_union(schema, path, depth)
        elif schema["type"] == "enum":
            self._start(path)
            self.emit(Op.SKIP_ENUM, len(schema["symbols"]))
        elif schema["type"] in ("array", "map"):
            self._start(path)
            self._items(schema, path, lambda items: self.skip(items, path, depth + 1))
        else:
            self.record(schema, None, path, depth + 1)

    def _skip_union(self, branches: list[Any], path: str, depth: int) -> None:
        if len(branches) == 2 and (branches[0] == "null") != (branches[1] == "null"):
            null = 0 if branches[0] == "null" else 1
            value = branches[1 - null]
            size = self._fixed_size(value)
            if size is not None:
                self._skip_more(Op.SKIP_OPTIONAL_BYTES, path, (null, size), 1)
                return
            value = self._resolve(value)
            if isinstance(value, str):
                op = Op.SKIP_OPTIONAL_LONGS if value in ("int", "long") else Op.SKIP_OPTIONAL_BLOBS
                self._skip_more(op, path, (null,), 1)
                return
        self._start(path)
        self._union(branches, lambda branch: self.skip(branch, path, depth + 1))

    def _fixed_size(self, schema: Any) -> int | None:
        """Bytes of a value where all values have the same number."""
        resolved = self._resolve(schema)
        if isinstance(resolved, str):
            return _FIXED_SIZES.get(resolved)
        if isinstance(resolved, dict) and (resolved["type"] == "fixed" or self.least_size(resolved) == 0):
            return self.least_size(resolved)
        return None

    def _skip_more(self, op: Op, path: str, operands: tuple[int, ...], count: int) -> None:
        """Step over ``count`` more of one kind, by the last instruction where that does the same."""
        last = self._last
        if last >= 0 and self.code[last] == op and tuple(self.code[last + 1 : last + 1 + len(operands)]) == operands:
            self.code[last + 1 + len(operands)] += count
            first = self.paths[-1].partition(" to ")[0]
            self.paths[-1] = f"{first} to {path[:_MAX_PATH]}"
            return
        self._start(path)
        self._last = self.emit(op, *operands, count)

    def _read(self, schema: Any, target: tuple[int, int, Kind], path: str) -> None:
        table, column, kind = target
        branches = self._resolve(schema)
        if not isinstance(branches, list):
            self._check({branches if isinstance(branches, str) else branches["type"]}, kind, path)
            self._read_value(branches, target, -1)
            return
        resolved = [self._resolve(branch) for branch in branches]
        types = [branch if isinstance(branch, str) else _type_name(branch) for branch in resolved]
        self._check(set(types), kind, path)
        if len(types) == 2 and "null" in types and types != ["null", "null"]:
            null = types.index("null")
            self._read_value(types[1 - null], target, null)
            return

        def read(branch: Any) -> None:
            if branch == "null":
                self.emit(Op.NULL, table, column, kind)
            elif isinstance(branch, str) and (branch, kind) in _READ:
                self._read_value(branch, target, -1)
            else:
                self.emit(Op.WRONG)

        self._union(resolved, read)

    def _read_value(self, type_name: Any, target: tuple[int, int, Kind], null: int) -> None:
        table, column, kind = target
        if type_name == "null":
            self.emit(Op.NULL, table, column, kind)
        else:
            self.emit(_READ[type_name, kind], table, column, null)

    def _check(self, types: set[str], kind: Kind, path: str) -> None:
        if types - {"null"} and not any((name, kind) in _READ for name in types):
            given = " or ".join(sorted(types - {"null"}))
            raise DecodeError(f"field {path[:_MAX_PATH]} is of type {given}, which is no {_NAMES[kind]}")

    def _sub_record(self, schema: Any, place: RecordPlan, path: str, depth: int) -> None:
        def read(branch: Any) -> None:
            if branch == "null":
                self._nulls(place)
            elif _is_record(branch):
                self.record(branch, place, path, depth + 1)
            else:
                self.emit(Op.WRONG)

        self._one_of(schema, _is_record, "record", read, path)

    def _sub_array(self, schema: Any, place: RecordPlan, path: str, depth: int) -> None:
        def read_array(branch: Any) -> None:
            if _is_array(branch):
                self._items(branch, path, lambda items: self._sub_record(items, place, path, depth + 1))
            elif branch != "null":
                self.emit(Op.WRONG)

        self._one_of(schema, _is_array, "array", read_array, path)

    def _one_of(self, schema: Any, serves: Any, what: str, read: Any, path: str) -> None:
        """Read a value that ``serves`` accepts the type of, or the branches of a union that has such a one."""
        resolved = self._resolve(schema)
        branches = [self._resolve(branch) for branch in resolved] if isinstance(resolved, list) else [resolved]
        if not any(serves(branch) or branch == "null" for branch in branches):
            given = " or ".join(_type_name(branch) for branch in branches)
            raise DecodeError(f"field {path[:_MAX_PATH]} is of type {given}, which is no {what}")
        if isinstance(resolved, list):
            self._union(branches, read)
        else:
            read(resolved)

    def _nulls(self, place: RecordPlan) -> None:
        for table, column, kind in place.nulls():
            self.emit(Op.NULL, table, column, kind)

    def _union(self, branches: list[Any], compile_branch: Any) -> None:
        start = self.emit(Op.UNION, len(branches))
        self.code += [0] * len(branches)
        ends = []
        for number, branch in enumerate(branches):
            self._last = -1
            self.code[start + _WORDS + number] = len(self.code) - start
            compile_branch(branch)
            ends.append(self.emit(Op.JUMP))
        for end in ends:
            self.code[end + 1] = len(self.code) - end
        self._last = -1

    def _items(self, schema: Any, path: str, compile_item: Any) -> None:
        items = schema["items"] if schema["type"] == "array" else schema["values"]
        self.emit(Op.OPEN)
        is_map = schema["type"] == "map"
        least = self.least_size(items) + is_map
        start = self.emit(Op.NEXT, 0, least)
        if is_map:
            self.emit(Op.SKIP_BLOBS, 1)
        if least:  # where items have no bytes, there is nothing to do for any number of them
            compile_item(items)
        back = self.emit(Op.JUMP)
        self.code[back + 1] = start - back
        self.code[start + 1] = len(self.code) - start
        self._last = -1
        self._start(path)

    def _start(self, path: str) -> None:
        """Note that what follows belongs to the field ``path``."""
        self._last = -1
        path = path[:_MAX_PATH]
        if self.starts[-1] == len(self.code):
            self.paths[-1] = path
        else:
            self.starts.append(len(self.code))
            self.paths.append(path)


_NAMES: Final = {Kind.NUMBER: "number", Kind.INTEGER: "integer", Kind.TEXT: "text", Kind.LABEL: "label"}


def _type_name(branch: Any) -> str:
    return branch if isinstance(branch, str) else "union" if isinstance(branch, list) else str(branch["type"])


def _is_record(branch: Any) -> bool:
    return isinstance(branch, dict) and branch["type"] in ("record", "error")


def _is_array(branch: Any) -> bool:
    return isinstance(branch, dict) and branch["type"] == "array"


def lay_out(programs: Sequence[Program]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All programs in one array of code, and where each begins (n,)."""
    starts = np.cumsum([0, *(len(p.code) for p in programs)])[:-1]
    return np.concatenate([p.code for p in programs]), starts.astype(np.int64)


def check_schema(schema: AvroSchema) -> None:
    """Raises DecodeError where records of ``schema`` cannot be read, whatever is wanted of them."""
    compile_schema(WriterSchema.parse(schema), NOTHING)
