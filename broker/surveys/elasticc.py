"""ELAsTiCC packets: simulated alerts of LSST's future (https://github.com/LSSTDESC/elasticc), schema 0.9."""

from __future__ import annotations

from typing import Final

from broker.surveys.columns import TimeRange
from broker.surveys.lsst import Lsst


class Elasticc(Lsst):
    """LSST's packets in another unit, known by the names of their schemas."""

    name = "elasticc"
    flux_unit = 10.0 ** (0.4 * (31.4 - 27.5))
    """Its fluxes are SNANA's FLUXCAL, of zero point 27.5 mag; in nJy it is 31.4 mag. The median error of g,
    2.4, is then 24.8 mag at five sigma, as expected of one visit of LSST (Ivezic et al. 2019, ApJ 873, 111)."""

    times = TimeRange(first=59_000.0, last=64_000.0, simulated=True)
    """Three simulated years from MJD 59580 on, of the ten of the cadence simulation; none of the time of the stream."""

    def recognises(self, schema_name: str, fields: frozenset[str]) -> bool:
        """Structured as LSST's, in a namespace of its own."""
        return schema_name.startswith("elasticc") and super().recognises(schema_name, fields)


SURVEY: Final = Elasticc()
