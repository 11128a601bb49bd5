"""One object in memory, while alerts are merged into it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from broker.records import Alert, LightCurve, ObjectState, SourceMetadata, Spectrum
from broker.state.merge import merge


@dataclass(slots=True)
class RememberedObject:
    """What is known of an object so far."""

    light_curve: LightCurve = field(default_factory=LightCurve.empty)
    ra: float = float("nan")
    dec: float = float("nan")
    position_mjd: float = float("-inf")
    """Time of the detection that the position is from: the latest."""
    spectrum: Spectrum | None = None
    metadata: SourceMetadata | None = None
    """Catalogue values that were stored for the object, without those its packets carry."""

    def merge(self, alert: Alert, max_points: int) -> ObjectState:
        """Merge an alert in place; returns the object's state after it.

        Stored catalogue values win over those in the packet, which fill what is unknown.
        """
        self.light_curve = merge(self.light_curve, alert.light_curve, max_points)
        latest = (alert.mjd, alert.ra, alert.dec)
        if latest > (self.position_mjd, self.ra, self.dec):
            self.position_mjd, self.ra, self.dec = latest
        return ObjectState(
            alert.object_id, self.ra, self.dec, self.light_curve, self.spectrum, _fill(self.metadata, alert.metadata)
        )


def _fill(stored: SourceMetadata | None, packet: SourceMetadata | None) -> SourceMetadata | None:
    if stored is None or packet is None:
        return stored or packet
    return SourceMetadata(np.where(np.isnan(stored.values), packet.values, stored.values))
