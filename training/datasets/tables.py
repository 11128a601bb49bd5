"""ASAS and Catalina light curves with their labels, as one table of objects.

ASAS: the All Sky Automated Survey's variable stars (Pojmanski 2002, AcA 52, 397). CSS: the Catalina southern
survey's periodic variables (Drake et al. 2017, MNRAS 469, 3688). Both are V magnitudes, taken as AB: only
ratios of flux enter the model, so the 0.02 mag between the two systems is of no consequence. ASAS's times are
heliocentric, Catalina's are those at the observatory and are corrected here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from broker.barycentre import barycentric_light_curves
from broker.errors import InputFileError
from broker.photometry import magnitude_to_flux
from broker.records import BAND_CODE, LightCurve, ObjectState, TimeSystem
from broker.times import JD_OF_MJD_0
from training.datasets.vsx import DISPUTED, contradicted

TIME_SYSTEM: Final = TimeSystem.BARYCENTRIC
"""Of the light curves of an ``ObjectTable``, whose heliocentric times are within 5 s of it."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ObjectTable:
    """n objects, one row each; a star observed by both surveys has two rows with one ``star_id``."""

    object_id: NDArray[np.object_]
    """``asas:<name>`` or ``css:<css_id>``."""
    star_id: NDArray[np.object_]
    survey: NDArray[np.object_]
    ra: NDArray[np.float64]
    """ICRS degrees, as ``dec``."""
    dec: NDArray[np.float64]
    label: NDArray[np.object_]
    """Class name, None where unknown."""
    label_quality: NDArray[np.object_]
    """gold (the GCVS agrees), std, weak, conflict (the GCVS disagrees), disputed (VSX disagrees) or None."""
    label_is_coarse: NDArray[np.bool_]
    """True for Catalina's EW, which lumps contact and semi-detached binaries."""
    light_curves: list[LightCurve]
    """Their times are heliocentric or barycentric: TIME_SYSTEM."""
    mean_magnitude: NDArray[np.float64]
    """Median V."""
    measured: dict[str, NDArray[np.float64]]
    """Catalogue columns measured for the star itself, NaN where not: ``gaia_g``, ``gaia_bp``, ``gaia_rp``,
    ``hip_plx``, ``hip_e_plx``, ``hip_bv``, ``hip_vi``."""

    def __len__(self) -> int:
        return len(self.object_id)

    def states(
        self, rows: Iterable[np.intp | int], light_curves: Sequence[LightCurve] | None = None
    ) -> list[ObjectState]:
        """The objects of ``rows`` as the service would know them, with their own light curves or others instead."""
        index = [int(i) for i in rows]
        curves = [self.light_curves[i] for i in index] if light_curves is None else light_curves
        return [
            ObjectState(str(self.object_id[i]), float(self.ra[i]), float(self.dec[i]), curve, time_system=TIME_SYSTEM)
            for i, curve in zip(index, curves, strict=True)
        ]


# The file's ``gaia_pmra`` and ``gaia_pmdec`` hold BP and RP magnitudes: 4 to 15 for each star, never negative, with G
# between the two, and BP - RP follows Hipparcos's B - V (correlation 0.77 over 283 stars).
_MEASURED = {
    "gaia_g": "gaia_g", "gaia_bp": "gaia_pmra", "gaia_rp": "gaia_pmdec",
    "hip_plx": "hip_plx", "hip_e_plx": "hip_e_plx", "hip_bv": "hip_bv", "hip_vi": "hip_vi",
}  # fmt: skip
"""Names of the measured values, and of the file's columns that hold them."""


def load_objects(data: Path, against_vsx: bool = True) -> ObjectTable:
    """Read ``asas_v.parquet`` and ``css_v.parquet`` in the folder ``data``; InputFileError if they cannot be.

    Labels that VSX contradicts are of the quality ``disputed``, unless ``against_vsx`` is False.
    """
    try:
        asas = pq.read_table(data / "asas_v.parquet")
        css = pq.read_table(data / "css_v.parquet")
    except (OSError, pa.ArrowException) as error:
        raise InputFileError(f"training light curves: {error}") from error
    asas_curves, asas_median = _light_curves(asas, "hjd", JD_OF_MJD_0, "asas:V")
    css_curves, css_median = _light_curves(css, "mjd", 0.0, "css:V")
    css_curves = barycentric_light_curves(
        [
            ObjectState("", ra, dec, curve)
            for ra, dec, curve in zip(_column(css, "ra"), _column(css, "dec"), css_curves, strict=True)
        ]
    )
    asas_css_id = _objects(asas, "css_id")
    css_label = _objects(css, "label")
    result = ObjectTable(
        object_id=_concatenate(_prefixed("asas:", _objects(asas, "name")), _prefixed("css:", _objects(css, "css_id"))),
        star_id=_concatenate(
            [f"css:{c}" if c else f"asas:{n}" for c, n in zip(asas_css_id, _objects(asas, "name"), strict=True)],
            _prefixed("css:", _objects(css, "css_id")),
        ),
        survey=_concatenate(["asas"] * len(asas), ["css"] * len(css)),
        ra=_floats(asas, css, "ra"),
        dec=_floats(asas, css, "dec"),
        label=_concatenate(_objects(asas, "label"), css_label),
        label_quality=_concatenate(_objects(asas, "label_quality"), ["std" if c else None for c in css_label]),
        label_is_coarse=np.array([False] * len(asas) + [c == "EW" for c in css_label]),
        light_curves=asas_curves + css_curves,
        mean_magnitude=np.concatenate([asas_median, css_median]),
        measured={
            name: np.concatenate([_column(asas, column), np.full(len(css), np.nan)])
            for name, column in _MEASURED.items()
        },
    )
    if against_vsx:
        usable = np.array([quality in ("gold", "std") for quality in result.label_quality], np.bool_)
        differs = contradicted(data, result.label, result.label_is_coarse, result.ra, result.dec)
        result.label_quality[usable & differs] = DISPUTED
    return result


def _light_curves(
    table: pa.Table, time: str, time_origin: float, band: str
) -> tuple[list[LightCurve], NDArray[np.float64]]:
    """Light curves and median magnitudes from list columns; points that are not finite are left out."""
    lists = cast("pa.ListArray[Any]", table[time].combine_chunks())
    bounds = lists.offsets.to_numpy()
    mjd = lists.values.to_numpy(zero_copy_only=False).astype(np.float64) - time_origin
    magnitude, error = (
        cast("pa.ListArray[Any]", table[name].combine_chunks()).values.to_numpy(zero_copy_only=False).astype(np.float64)
        for name in ("vmag", "vmag_err")
    )
    good = np.isfinite(mjd) & np.isfinite(magnitude) & np.isfinite(error) & (error > 0)
    row = np.repeat(np.arange(len(table)), np.diff(bounds))[good]
    flux, flux_error = magnitude_to_flux(magnitude[good], error[good])
    bounds = np.searchsorted(row, np.arange(len(table) + 1))
    mjd, flux_32, error_32 = mjd[good], flux.astype(np.float32), flux_error.astype(np.float32)
    curves, median = [], np.full(len(table), np.nan)
    for start, stop in pairwise(bounds):
        size = stop - start
        curves.append(
            LightCurve(
                mjd[start:stop],
                flux_32[start:stop],
                error_32[start:stop],
                np.zeros(size, np.float32),
                np.full(size, BAND_CODE[band], np.uint8),
                np.zeros(size, np.uint8),
            )
        )
    middle = (bounds[:-1] + bounds[1:] - 1) // 2
    ordered = magnitude[good][np.lexsort((magnitude[good], row))]
    some = np.diff(bounds) > 0
    median[some] = ordered[middle[some]]
    return curves, median


def _objects(table: pa.Table, name: str) -> list[str | None]:
    return [str(value) if value is not None else None for value in table[name].to_pylist()]


def _column(table: pa.Table, name: str) -> NDArray[np.float64]:
    return np.asarray(table[name].to_numpy(zero_copy_only=False), np.float64)


def _floats(first: pa.Table, second: pa.Table, name: str) -> NDArray[np.float64]:
    return np.concatenate([_column(first, name), _column(second, name)])


def _prefixed(prefix: str, names: list[str | None]) -> list[str | None]:
    return [f"{prefix}{name}" for name in names]


def _concatenate(first: list[str | None], second: list[str | None]) -> NDArray[np.object_]:
    return np.array([*first, *second], dtype=object)
