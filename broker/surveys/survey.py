"""What a module must offer to be a survey's, and how the modules are found.

A new survey is one module with an object ``SURVEY``, named in ``MODULES`` or in the settings; what it needs is found
here and in ``columns.py``.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Final, Protocol, runtime_checkable

from broker.avro.layout import Column, RowTable
from broker.avro.machine import NULL, Kind
from broker.avro.reader import FilledTable, Records
from broker.errors import ConfigurationError, DecodeError
from broker.records import Alert

__all__ = ["MODULES", "NULL", "Column", "FilledTable", "Kind", "Records", "RowTable", "Survey", "load_surveys"]

MODULES: Final = ("broker.surveys.ztf", "broker.surveys.lsst", "broker.surveys.elasticc")
"""Modules of the surveys that are decoded where the settings name no others. Later ones are asked first, so that
one may take packets that an earlier one would take, too."""


@runtime_checkable
class Survey(Protocol):
    """One survey's packets.

    A module may also have ``times``, a ``columns.TimeRange``: outside of it, ``trifid state repair`` removes points.
    """

    @property
    def name(self) -> str:
        """Lower-case, as in names of topics."""

    @property
    def tables(self) -> Mapping[str, RowTable]:
        """What is read of a packet. The first table has one row a record."""

    def recognises(self, schema_name: str, fields: frozenset[str]) -> bool:
        """Whether records of a type, by its full name and the fields at its top, are this survey's alerts."""

    def to_alerts(self, records: Records) -> list[Alert | DecodeError]:
        """One Alert for each of ``records``, in their order, or why it is none."""


def load_surveys(names: Sequence[str] = MODULES) -> tuple[Survey, ...]:
    """The surveys of modules by name; raises ConfigurationError where one cannot be imported or is none."""
    surveys: list[Survey] = []
    for name in names:
        try:
            survey = importlib.import_module(name).SURVEY
        except Exception as error:  # the module may be anyone's
            raise ConfigurationError(f"survey module {name!r}: {type(error).__name__}: {error}") from error
        if not isinstance(survey, Survey):
            raise ConfigurationError(
                f"survey module {name!r}: its SURVEY lacks one of name, tables, recognises and to_alerts"
            )
        if survey.name in (other.name for other in surveys):
            raise ConfigurationError(f"survey module {name!r}: there is a survey {survey.name!r} already")
        surveys.append(survey)
    if not surveys:
        raise ConfigurationError("no survey module is named")
    return tuple(surveys)
