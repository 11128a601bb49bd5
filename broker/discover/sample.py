"""The stars of one class: embeddings, features of their light curves, values and types of catalogues."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from broker.assemble import assemble
from broker.assemble.lightcurve import LIGHT_CURVE_FEATURES
from broker.audit.claims import Claims, claimed_type
from broker.errors import InputFileError
from broker.inference import Engine
from broker.lightcurves.objects import NamedLightCurve
from broker.offline import batched
from broker.records import ObjectState, Spectrum
from broker.sky import separation
from broker.spectra.places import Spectra
from broker.tables.files import open_table
from broker.tables.table import input_errors

INDICES: Final[dict[str, tuple[tuple[float, float], tuple[tuple[float, float], ...]]]] = {
    "TiO 7100 (oxygen-rich)": ((7126.0, 7137.0), ((7044.0, 7048.0),)),
    "C2 5165 (carbon-rich)": ((5030.0, 5165.0), ((5190.0, 5250.0),)),
    "CN 7900 (carbon-rich)": ((7900.0, 8000.0), ((7830.0, 7880.0),)),
    "H alpha": ((6555.0, 6575.0), ((6500.0, 6545.0), (6585.0, 6630.0))),
    "Ca K": ((3925.0, 3945.0), ((3900.0, 3915.0), (3955.0, 3962.0))),
}
"""Vacuum wavelengths (Angstrom) of a band and of what it is divided by: below 1 where it absorbs. TiO: Reid et al.
1995, AJ 110, 1838 (TiO5); C2 and CN: Swan and red system heads (Barnbaum et al. 1996, ApJS 105, 419)."""
_OF_THE_SURVEY: Final = frozenset({"log10_span", "log10_points", "is_total_flux", "has_period", "bands", "tone"})
"""Features that say how a star was observed, and nothing of it."""
_NUMBER: Final = r"^\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*$"
_RA: Final = ("ra", "gaia_ra", "raj2000", "ra_icrs", "radeg", "_raj2000")
_DEC: Final = ("dec", "gaia_dec", "dej2000", "de_icrs", "dedeg", "_dej2000")
_NOT_VALUES: Final = frozenset({*_RA, *_DEC, "asassn_ra", "asassn_dec", "gaia_source_id", "css_id", "rank"})


@dataclass(slots=True, eq=False)
class Sample:
    """n stars of the class, and others that are drawn into their map."""

    names: list[str] = field(default_factory=list)
    embeddings: list[NDArray[np.float32]] = field(default_factory=list)
    features: dict[str, list[float]] = field(default_factory=dict)
    types: dict[str, list[str]] = field(default_factory=dict)
    others: dict[str, list[NDArray[np.float32]]] = field(default_factory=dict)
    """Embeddings of projected stars, by type."""
    total: int = 0
    """Stars that were given."""


class Values:
    """Columns of numbers of a table, by name and position."""

    def __init__(self, path: Path, radius: float, differences: Sequence[str] = ()) -> None:
        """``differences`` such as ``BP-RP`` add the difference of two columns, where the table has both.

        Raises InputFileError where the table cannot be read, or has no positions.
        """
        self.path, self._radius = path, radius
        with input_errors(path):
            table = open_table(path)
            by_lower = {name.lower(): name for name in reversed(table.names)}
            ra, dec = (next((by_lower[n] for n in spellings if n in by_lower), None) for spellings in (_RA, _DEC))
            if ra is None or dec is None:
                raise InputFileError(f"no columns for ra and dec among {', '.join(table.names)[:300]}")
            scalar = [name for name in table.names if table.values_per_row(name) <= 1.0]
            parts = list(table.batches(scalar, numbers=scalar))
        given = {name: [_numbers(part.column(name)) for part in parts] for name in scalar}
        arrays = {
            name: np.concatenate([column for column in columns if column is not None])
            for name, columns in given.items()
            if columns and all(column is not None for column in columns)
        }
        if ra not in arrays or dec not in arrays:
            raise InputFileError(f"{path}: {ra} and {dec} are no numbers of degrees")
        self._ra, self._dec = arrays[ra], arrays[dec]
        self.columns: dict[str, NDArray[np.float64]] = {
            name: values for name, values in arrays.items() if name.lower() not in _NOT_VALUES
        }
        """Of numbers, without those of position and name."""
        for text in differences:
            first, _, second = text.partition("-")
            if first.strip() in arrays and second.strip() in arrays:
                self.columns[text] = arrays[first.strip()] - arrays[second.strip()]

    def at(self, ra: float, dec: float) -> dict[str, float]:
        """The values of the nearest row within the radius; NaN for all where there is none."""
        away = separation(np.full_like(self._ra, ra), np.full_like(self._dec, dec), self._ra, self._dec)
        away = np.where(np.isfinite(away), away, np.inf)
        at = int(away.argmin()) if len(away) else -1
        found = at >= 0 and away[at] <= self._radius
        return {name: float(column[at]) if found else float("nan") for name, column in self.columns.items()}


def _numbers(column: Any) -> NDArray[np.float64] | None:
    """A column as numbers, NaN for what is none; None where most of what it holds is none."""
    if pa.types.is_floating(column.type) or pa.types.is_integer(column.type):
        return np.asarray(column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return None
    number = pc.match_substring_regex(column, _NUMBER)
    if 2 * (pc.sum(number).as_py() or 0) < len(column) - column.null_count:
        return None
    plain = pc.if_else(number, pc.utf8_trim_whitespace(column), pa.scalar(None, column.type))
    return np.asarray(plain.cast(pa.float64()).to_numpy(zero_copy_only=False))


def gather(
    engine: Engine,
    curves: Iterable[NamedLightCurve],
    claims: Claims,
    class_name: str,
    *,
    project: Callable[[str], bool] = lambda _: False,
    values: Sequence[Values] = (),
    spectra: Spectra | None = None,
    batch_size: int = 256,
) -> Sample:
    """The stars whose type in the table means ``class_name`` alone, and those whose type ``project`` takes.

    Only these are embedded. Features of the light curve, columns of ``values`` and band indices of ``spectra`` are
    NaN where unknown.
    """
    result = Sample()
    for batch in batched(curves, batch_size):
        result.total += len(batch)
        chosen: list[tuple[NamedLightCurve, str, bool]] = []
        for curve, claim in zip(batch, claims.of(batch), strict=True):
            if claim is None:
                continue
            kind = claimed_type(claim.type)
            if kind.classes == {class_name}:
                chosen.append((curve, claim.type, True))
            elif claim.type and project(claim.type):
                chosen.append((curve, claim.type, False))
        if chosen:
            _add(result, engine, chosen, values, spectra)
    return result


def _add(
    result: Sample,
    engine: Engine,
    chosen: Sequence[tuple[NamedLightCurve, str, bool]],
    values: Sequence[Values],
    spectra: Spectra | None,
) -> None:
    found = [None if spectra is None else spectra.at(curve.ra, curve.dec) for curve, _, _ in chosen]
    states = [
        ObjectState(
            c.name, c.ra, c.dec, c.light_curve, None if s is None else s.spectrum, time_system=c.time_system
        )
        for (c, _, _), s in zip(chosen, found, strict=True)
    ]  # fmt: skip
    inputs = assemble(states)
    embeddings = engine.predict(inputs).embeddings
    for row, ((curve, kind, own), spectrum) in enumerate(zip(chosen, found, strict=True)):
        if not inputs.light_curve.present[row]:
            continue  # too few points: its embedding would be of something else
        if not own:
            result.others.setdefault(kind, []).append(embeddings[row])
            continue
        result.names.append(curve.name)
        result.embeddings.append(embeddings[row])
        result.types.setdefault("type", []).append(kind)
        numbers = {
            name: float(value)
            for name, value in zip(LIGHT_CURVE_FEATURES, inputs.light_curve.features[row].tolist(), strict=True)
            if name not in _OF_THE_SURVEY
        }
        for one in values:
            numbers |= {f"{one.path.name}: {name}": value for name, value in one.at(curve.ra, curve.dec).items()}
        if spectra is not None:
            numbers |= indices(None if spectrum is None else spectrum.spectrum)
        for name, value in numbers.items():
            result.features.setdefault(name, []).append(value)


def indices(spectrum: Spectrum | None) -> dict[str, float]:
    """The ratios of INDICES; NaN where the spectrum does not cover them, or there is none."""
    result = {}
    for name, (band, beside) in INDICES.items():
        level, continuum = _mean(spectrum, (band,)), _mean(spectrum, beside)
        result[name] = level / continuum if continuum > 0 else float("nan")
    return result


def _mean(spectrum: Spectrum | None, windows: Sequence[tuple[float, float]]) -> float:
    if spectrum is None:
        return float("nan")
    inside = np.zeros(len(spectrum.wavelength), np.bool_)
    for low, high in windows:
        own = (spectrum.wavelength >= low) & (spectrum.wavelength <= high)
        if not own.any():
            return float("nan")
        inside |= own
    inside &= np.isfinite(spectrum.flux_error) & np.isfinite(spectrum.flux)
    return float(spectrum.flux[inside].mean()) if inside.any() else float("nan")
