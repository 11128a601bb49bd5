"""Which fields are wanted of a record, as tables of columns, and in which cells of the machine's rows they go."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from broker.avro.machine import FIXED_COLUMNS, Kind
from broker.errors import ConfigurationError

_CELLS: Final = {Kind.NUMBER: 1, Kind.INTEGER: 1, Kind.TEXT: 2, Kind.LABEL: 1}


@dataclass(frozen=True, slots=True)
class Column:
    """One wanted field."""

    kind: Kind
    fields: tuple[str, ...]
    """Its name in the writer's schema; of several, the first that the writer's type has. A table of whole records
    may name fields of records within, as ``candidate.ra``."""


@dataclass(frozen=True, slots=True)
class RowTable:
    """Rows of one kind, from one or more places of a record."""

    paths: tuple[str, ...]
    """Where its rows are: ``""`` for the record itself, ``candidate`` for a record within it, ``prv_candidates[]``
    for the items of an array. A path that the writer's schema lacks, or that is null, gives no rows, nor do
    items that have no bytes."""
    columns: dict[str, Column]


@dataclass(slots=True)
class RecordPlan:
    """What is wanted of the record type at one place."""

    row: tuple[int, int] | None = None
    """The table and the number of its path that a row begins for."""
    wanted: list[tuple[tuple[str, ...], int, int, Kind]] = field(default_factory=list)
    """Names, table, column and kind of each field."""
    records: dict[str, RecordPlan] = field(default_factory=dict)
    arrays: dict[str, RecordPlan] = field(default_factory=dict)

    def of(self, path: str) -> RecordPlan:
        """The place at a path such as ``a.b`` or ``a.b[]`` from here."""
        place = self
        for part in filter(None, path.split(".")):
            places = place.arrays if part.endswith("[]") else place.records
            place = places.setdefault(part.removesuffix("[]"), RecordPlan())
        return place

    def nulls(self, begun: frozenset[int] = frozenset()) -> Iterator[tuple[int, int, Kind]]:
        """Table, column and kind of all that stays null in the open rows where there is no record here."""
        if self.row is not None:
            begun |= {self.row[0]}
        yield from ((table, column, kind) for _, table, column, kind in self.wanted if table not in begun)
        for place in self.records.values():
            yield from place.nulls(begun)


class Layout:
    """Tables laid out for the machine: which column is where."""

    def __init__(self, tables: dict[str, RowTable]) -> None:
        """The first of ``tables`` has one row a record. Raises ConfigurationError where they cannot be filled."""
        self.names: Final = tuple(tables)
        self.widths: Final = tuple(
            FIXED_COLUMNS + sum(_CELLS[c.kind] for c in table.columns.values()) for table in tables.values()
        )
        """Cells of a row, one number a table."""
        self.columns: Final[list[dict[str, tuple[int, Kind]]]] = []
        """Where each column begins, and its kind, one dictionary a table."""
        self.root: Final = RecordPlan()
        if next(iter(tables.values())).paths != ("",):
            raise ConfigurationError("the first table must be that of the records themselves")
        taken: set[str] = set()
        for number, table in enumerate(tables.values()):
            cells: dict[str, tuple[int, Kind]] = {}
            position = FIXED_COLUMNS
            for name, column in table.columns.items():
                cells[name] = (position, column.kind)
                position += _CELLS[column.kind]
            self.columns.append(cells)
            for path_number, path in enumerate(table.paths):
                self._add(number, path_number, path, table.columns, cells, taken)

    def _add(
        self,
        table: int,
        path_number: int,
        path: str,
        columns: dict[str, Column],
        cells: dict[str, tuple[int, Kind]],
        taken: set[str],
    ) -> None:
        place = self.root.of(path)
        if table:
            if place is self.root or place.row is not None:
                raise ConfigurationError(f"two tables want the rows of {path!r}")
            place.row = (table, path_number)
        for name, column in columns.items():
            parents = {field.rpartition(".")[0] for field in column.fields}
            if len(parents) != 1 or any("[]" in parent for parent in parents):
                raise ConfigurationError(f"{column.fields} are not fields of one record")
            names = tuple(field.rpartition(".")[2] for field in column.fields)
            for one in column.fields:
                full = f"{path}.{one}".lstrip(".")
                if full in taken:
                    raise ConfigurationError(f"the field {full} is wanted twice")
                taken.add(full)
            place.of(parents.pop()).wanted.append((names, table, *cells[name]))


NOTHING: Final = Layout({"record": RowTable(("",), {})})
"""No field at all, to find out where records end."""
