"""Light curves and spectra of objects, from the state, as people look at them: magnitudes, band by band."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from broker.barycentre import barycentric_light_curves
from broker.photometry import POGSON
from broker.records import (
    AB_ZERO_POINT_NJY,
    BANDS,
    SOURCE_FEATURES,
    Alert,
    LightCurve,
    ObjectState,
    ObservedSpectrum,
    PhotometryKind,
    Spectrum,
)
from broker.state import Store

_LIMIT_SIGMA: Final = 5.0
_NOTHING: Final = Spectrum(np.empty(0), np.empty(0, np.float32), np.empty(0, np.float32))
_DIGITS: Final = {"mjd": 7, "magnitude": 4, "magnitudeError": 4, "flux": 2, "fluxError": 2}


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """What the state has of one object."""

    alert: Alert
    """The latest, without its light curve."""
    state: ObjectState


def find(store: Store, survey: str, object_id: str, ra: float, dec: float) -> Known | None:
    """What is stored of an object, its counterparts' light curves included; None where nothing is.

    Under a name alone nothing is found: keys carry the part of the sky, and ``ra`` and ``dec`` tell which. Raises
    DependencyUnavailableError where the store does not answer.
    """
    named = ObservedSpectrum("", ra, dec, math.nan, _NOTHING, survey, object_id)
    for alert, state in store.objects_of([named])[0]:
        if (alert.survey, alert.object_id) == (survey, object_id):
            return Known(alert, state)
    return None


def magnitudes(curve: LightCurve) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """AB magnitudes (n,), their errors (n,) and whether each is of the total flux (n,).

    Without a reference flux it is of the difference flux. NaN where the flux is not positive; for a LIMIT the
    5-sigma limiting magnitude, without an error.
    """
    reference = curve.reference_flux.astype(np.float64)
    total = np.isfinite(reference)
    limit = curve.kind == PhotometryKind.LIMIT
    error = curve.flux_error.astype(np.float64)
    flux = np.where(limit, _LIMIT_SIGMA * error, curve.flux + np.where(total, reference, 0.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        magnitude = np.where(flux > 0, -2.5 * np.log10(flux / AB_ZERO_POINT_NJY), np.nan)
        magnitude_error = np.where(limit | ~(flux > 0), np.nan, POGSON * error / flux)
    return magnitude, magnitude_error, total & ~limit


def points(state: ObjectState) -> dict[str, list[Any]]:
    """Columns (n,) of the points, in order of time; None for what is not there. Fluxes in nJy, AB.

    ``mjd`` is UTC at the observatory; ``mjdBarycentric``, on which periods are found, has the light's travel time.
    """
    curve, (there,) = state.light_curve, barycentric_light_curves([state])
    placed = math.isfinite(state.ra + state.dec)
    magnitude, error, total = magnitudes(curve)
    reference = np.where(np.isfinite(curve.reference_flux), curve.reference_flux, 0.0)
    return {
        "mjd": _plain(curve.mjd, "mjd"),
        "band": [BANDS[code] for code in curve.band.tolist()],
        "kind": [PhotometryKind(code).name.lower() for code in curve.kind.tolist()],
        "magnitude": _plain(magnitude, "magnitude"),
        "magnitudeError": _plain(error, "magnitudeError"),
        "flux": _plain(curve.flux.astype(np.float64) + reference, "flux"),
        "fluxError": _plain(curve.flux_error.astype(np.float64), "fluxError"),
        "total": total.tolist(),
        "mjdBarycentric": _plain(there.mjd if placed else np.full(len(curve), np.nan), "mjd"),
    }


def as_csv(columns: Mapping[str, Sequence[Any]]) -> str:
    """Columns of one length as CSV (RFC 4180), empty where there is no value."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(columns)
    writer.writerows(("" if cell is None else cell for cell in row) for row in zip(*columns.values(), strict=True))
    return out.getvalue()


def spectrum(observed: Spectrum) -> dict[str, list[Any]]:
    """Wavelength in vacuum (Angstrom), flux and its error in the units of the spectrum; None for bad pixels."""
    return {
        "wavelength": _plain(observed.wavelength),
        "flux": _plain(observed.flux.astype(np.float64)),
        "fluxError": _plain(observed.flux_error.astype(np.float64)),
    }


def catalogue_values(state: ObjectState) -> dict[str, float]:
    """The values of catalogues and of the packet that are known, by the names of SOURCE_FEATURES."""
    if state.metadata is None:
        return {}
    values = zip(SOURCE_FEATURES, state.metadata.values.tolist(), strict=False)
    return {name: value for name, value in values if math.isfinite(value)}


def _plain(values: NDArray[np.float64], name: str | None = None) -> list[float | None]:
    if name is not None:
        values = np.round(values, _DIGITS[name])
    return [value if math.isfinite(value) else None for value in values.tolist()]
