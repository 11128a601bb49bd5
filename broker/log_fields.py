"""Fields that structured logs give each record of a piece of work, whoever logs it (``broker.cli.logs``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Final

Field = str | int
_FIELDS: Final[ContextVar[Mapping[str, Field]]] = ContextVar("log_fields", default=MappingProxyType({}))


@contextmanager
def log_fields(fields: Mapping[str, Field]) -> Iterator[None]:
    """Give what is logged meanwhile these fields: in this thread, and where its context is copied to."""
    token = _FIELDS.set({**_FIELDS.get(), **fields})
    try:
        yield
    finally:
        _FIELDS.reset(token)


def current_fields() -> Mapping[str, Field]:
    """Those of the work that this thread does now."""
    return _FIELDS.get()
