"""Objects in memory, while alerts are merged into them: all that both stores do alike."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from math import isnan
from typing import Final

import numpy as np

from broker.records import (
    Alert,
    Catalogued,
    KeptSearch,
    LightCurve,
    ObjectState,
    ObservedSpectrum,
    PhotometryKind,
    SourceMetadata,
    Spectrum,
)
from broker.state.keys import ObjectName
from broker.state.merge import MAX_POINTS, merge
from broker.state.places import SkyIndex, StoredPlace, place_of

ANOTHER_NIGHT: Final = 0.5
"""Days: detections farther apart are of two nights, between which all but the most distant bodies have moved on."""
BOGUS_BELOW: Final = {"ztf": 0.3}
"""Real/bogus scores by which a detection is an artefact. Of ZTF's, at 0.65 of `drb` 1.7 % of the real ones are missed
(Duev et al. 2019, MNRAS 489, 3582), and brokers' users ask for 0.5 to 0.65. Rubin sends no alerts of what it takes for
an artefact."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is kept, and how near is the same."""

    max_points: int = MAX_POINTS
    """Points kept of one object in one survey."""
    association_radius: float = 1.5
    """Arcsec within which objects of two surveys are one; 0 for never. Both surveys place a source to 0.1 arcsec;
    the rest is for faint ones, and for crowding, where the nearest is taken."""
    spectrum_radius: float = 2.0
    """Arcsec within which a spectrum is the object's: a fibre of LAMOST or SDSS sees 3 across."""

    @property
    def search_radius(self) -> float:
        """The wider of the two."""
        return max(self.association_radius, self.spectrum_radius)


@dataclass(slots=True)
class StoredObject:
    """What is known of an object so far."""

    light_curve: LightCurve = field(default_factory=LightCurve.empty)
    latest: Alert | None = None
    """The alert of the latest detection, without its light curve."""
    spectrum: Spectrum | None = None
    """A spectrum that was stored under the object's name."""
    kept_search: KeptSearch | None = None
    """The last period search in its light curve, with those of its counterparts."""

    def merge(self, alert: Alert, max_points: int) -> Alert:
        """Merge an alert in place; returns the object's latest alert after it."""
        self.light_curve = merge(self.light_curve, alert.light_curve, max_points)
        if self.latest is None or _rank(alert) > _rank(self.latest):
            self.latest = replace(alert, light_curve=LightCurve.empty())
        return self.latest


class Objects:
    """Objects and spectra by name and by place."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.known: defaultdict[ObjectName, StoredObject] = defaultdict(StoredObject)
        self.places: SkyIndex[ObjectName] = SkyIndex()
        self.spectra: dict[str, ObservedSpectrum] = {}
        self.spectra_places: SkyIndex[str] = SkyIndex()
        self._object_of_spectrum: dict[str, ObjectName] = {}

    def merge(self, alerts: Sequence[Alert], catalogued: Sequence[Catalogued | None]) -> list[ObjectState]:
        """Merge alerts one after another; each gives its object's state after it.

        ``catalogued`` are one per alert: what catalogues have at the position.
        """
        states = []
        for alert, values in zip(alerts, catalogued, strict=True):
            name = (alert.survey, alert.object_id)
            own = self.known[name]
            had_no_place = _has_no_place(own)
            latest = own.merge(alert, self.limits.max_points)
            # The same where an alert is merged again, as it is when a batch is tried again.
            state = self.state(name, alert, values, max(0, len(own.light_curve) - len(alert.light_curve)))
            self._put_place(name, alert, latest, had_no_place, state.metadata)
            states.append(state)
        return states

    def absorb(self, alerts: Sequence[Alert], catalogued: Sequence[Catalogued | None]) -> None:
        """Merge as ``merge`` does, without the states."""
        for alert, values in zip(alerts, catalogued, strict=True):
            name = (alert.survey, alert.object_id)
            own = self.known[name]
            had_no_place = _has_no_place(own)
            latest = own.merge(alert, self.limits.max_points)
            there = None if values is None or is_moving(alert, own.light_curve) else values.metadata
            self._put_place(name, alert, latest, had_no_place, _fill(there, latest.metadata))

    def _put_place(
        self, name: ObjectName, alert: Alert, latest: Alert, had_no_place: bool, metadata: SourceMetadata | None
    ) -> None:
        """Note where an object is, after an alert was merged; ``had_no_place`` is of before."""
        if latest.mjd == alert.mjd:
            seen = alert
        elif had_no_place:
            seen = latest  # this alert is the history that tells the latest one from a passing body's
        else:
            return
        if not is_moving(seen, self.known[name].light_curve):
            self.places.put(name, place_of(seen, metadata), alert.survey)

    def state(
        self, name: ObjectName, at: Alert, catalogued: Catalogued | None, remembered: int | None = None
    ) -> ObjectState:
        """All that is known of one object, with its counterparts in other surveys and the spectra at its place.

        ``remembered`` of its points are not in the packet; all where it is not given.

        A catalogue's values at the position win over the packet's, which fill what is unknown; what catalogues of known
        variable stars have there is passed on as it is. The nearest object of each other survey is taken for the same.
        """
        own = self.known[name]
        latest = own.latest or at
        others: dict[str, ObjectName] = {}
        spectrum = own.spectrum
        if is_moving(at, own.light_curve):
            catalogued = None
        else:
            if self.limits.association_radius:
                for _, other in self.places.near(at, self.limits.association_radius, without=name[0]):
                    others.setdefault(other[0], other)
            observed = [self.spectra[s] for _, s in self.spectra_places.near(at, self.limits.spectrum_radius)]
            found = [self.known[other] for other in others.values()]
            if spectrum is None:
                spectrum = next((o.spectrum for o in found if o.spectrum is not None), None)
            if spectrum is None and observed:
                spectrum = max(observed, key=_recency).spectrum
        found_there = catalogued or Catalogued()
        metadata = _fill(found_there.metadata, latest.metadata)
        light_curve = reduce(
            lambda curve, other: merge(curve, self.known[other].light_curve, 0), others.values(), own.light_curve
        )
        return ObjectState(
            name[1], latest.ra, latest.dec, light_curve, spectrum, metadata,
            tuple(sorted(f"{survey}:{object_id}" for survey, object_id in others.values())),
            remembered=len(own.light_curve) if remembered is None else remembered,
            history_start=float(own.light_curve.mjd[0]) if len(own.light_curve) else None,
            known_as=found_there.known_as, kept_search=own.kept_search,
        )  # fmt: skip

    def take(self, name: ObjectName, curve: LightCurve, latest: Alert) -> None:
        """Merge what was stored of an object: its light curve and its latest alert."""
        known = self.known[name]
        if known.latest is None:
            known.light_curve, known.latest = curve, latest
            return
        known.light_curve = merge(known.light_curve, curve, self.limits.max_points)
        known.latest = max(known.latest, latest, key=_rank)

    def put_spectrum(self, name: ObjectName, spectrum: Spectrum) -> None:
        """Store a spectrum under an object's name, in place of any other."""
        self.known[name].spectrum = spectrum
        self._object_of_spectrum = {s: other for s, other in self._object_of_spectrum.items() if other != name}

    def add_spectra(self, spectra: Sequence[ObservedSpectrum]) -> None:
        """Store spectra, under the object's name where it is given, else by their place; and nowhere else."""
        for spectrum in spectra:
            before = self._object_of_spectrum.pop(spectrum.spectrum_id, None)
            if before is not None:
                self.known[before].spectrum = None
            if spectrum.survey and spectrum.object_id:
                name = (spectrum.survey, spectrum.object_id)
                self.put_spectrum(name, spectrum.spectrum)
                self._object_of_spectrum[spectrum.spectrum_id] = name
                self.spectra_places.remove(spectrum.spectrum_id)
                self.spectra.pop(spectrum.spectrum_id, None)
            else:
                self.spectra[spectrum.spectrum_id] = spectrum
                place = StoredPlace(spectrum.ra, spectrum.dec, spectrum.mjd)
                self.spectra_places.put(spectrum.spectrum_id, place)

    def objects_of(self, spectrum: ObservedSpectrum) -> list[ObjectName]:
        """The objects, of which an alert was seen, that a spectrum is of: by name, else the nearest of each survey."""
        if spectrum.survey and spectrum.object_id:
            names = [(spectrum.survey, spectrum.object_id)]
        else:
            nearest: dict[str, ObjectName] = {}
            for _, name in self.places.near(spectrum, self.limits.spectrum_radius):
                nearest.setdefault(name[0], name)
            names = list(nearest.values())
        return [name for name in names if name in self.known and self.known[name].latest is not None]

    def latest_states(
        self, names: Sequence[ObjectName], catalogued: Sequence[Catalogued | None]
    ) -> list[tuple[Alert, ObjectState]]:
        """The latest alert and the present state of objects of which an alert was seen."""
        latest = [alert for name in names if (alert := self.known[name].latest) is not None]
        return [
            (alert, self.state((alert.survey, alert.object_id), alert, values))
            for alert, values in zip(latest, catalogued, strict=True)
        ]


def _has_no_place(own: StoredObject) -> bool:
    return own.latest is not None and is_moving(own.latest, own.light_curve)


def has_no_object(alert: Alert) -> bool:
    """Whether the survey knows the detection as a body of the solar system alone."""
    return alert.object_id.startswith("sso:")


def is_moving(alert: Alert, curve: LightCurve) -> bool:
    """Whether an alert is of a body of the solar system, which has no place.

    Bodies pass over stars. An object that was detected on another night, as its survey says or its light curve
    ``curve`` shows, does not move: the body that the survey names beside it is there by chance. Forced photometry and
    limits are no sign of it, since packets have them of any place.
    """
    if has_no_object(alert) or not alert.solar_system:
        return has_no_object(alert)
    return _on_one_night(alert, curve)


def is_artefact(alert: Alert, curve: LightCurve) -> bool:
    """Whether an alert is of nothing in the sky, by its survey's own score and BOGUS_BELOW.

    One poor image of a star does not make it an artefact: what was detected on another night is none.
    """
    if alert.real_bogus is None or not alert.real_bogus < BOGUS_BELOW.get(alert.survey, 0.0):
        return False
    return _on_one_night(alert, curve)


def _on_one_night(alert: Alert, curve: LightCurve) -> bool:
    """Whether neither the survey nor the light curve know of a detection on another night."""
    if alert.first_detected is not None and alert.first_detected < alert.mjd - ANOTHER_NIGHT:
        return False
    elsewhen = np.abs(curve.mjd - alert.mjd) > ANOTHER_NIGHT
    return not np.any(elsewhen & (curve.kind == PhotometryKind.DETECTION))


def _rank(alert: Alert) -> tuple[float, float, float, int, int]:
    """Order of alerts of one object; by values alone, so that it does not matter which came first."""
    return alert.mjd, alert.ra, alert.dec, alert.alert_id, alert.source_id


def _recency(spectrum: ObservedSpectrum) -> tuple[float, str]:
    return (float("-inf") if isnan(spectrum.mjd) else spectrum.mjd), spectrum.spectrum_id


def _fill(first: SourceMetadata | None, second: SourceMetadata | None) -> SourceMetadata | None:
    if first is None or second is None:
        return first or second
    return SourceMetadata(np.where(np.isnan(first.values), second.values, first.values))
