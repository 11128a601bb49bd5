"""ELAsTiCC packets: simulated alerts of LSST's future (https://github.com/LSSTDESC/elasticc), schema 0.9."""

from __future__ import annotations

from typing import Final

from broker.records import Alert
from broker.surveys.lsst import FIELDS, MARK, dia_alert
from broker.surveys.wire import Record

__all__ = ["FIELDS", "MARK", "NAMESPACE", "SURVEY", "to_alert"]

SURVEY: Final = "elasticc"
NAMESPACE: Final = "elasticc"
"""How the names of its schemas begin: otherwise they have the structure of LSST's."""
_FLUX_UNIT: Final = 10.0 ** (0.4 * (31.4 - 27.5))
"""Its fluxes are SNANA's FLUXCAL, of zero point 27.5 mag; in nJy it is 31.4 mag. The median error of g,
2.4, is then 24.8 mag at five sigma, as expected of one visit of LSST (Ivezic et al. 2019, ApJ 873, 111)."""


def to_alert(record: Record, schema_name: str) -> Alert:
    """One packet as an Alert; raises DecodeError as ``lsst.to_alert`` does."""
    return dia_alert(record, schema_name, SURVEY, _FLUX_UNIT)
