"""What the head is trained on: stars of ASAS and Catalina, real stars in several bands, real packets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from rich.progress import track

from broker.assemble.lightcurve import LIGHT_CURVE_FEATURES, assemble_light_curves
from broker.assemble.metadata import (
    MODEL_FEATURES,
    Scaler,
    standardise,
)
from broker.records import METADATA_FEATURES, LightCurve, ObjectState
from broker.taxonomy import CLASS_NAMES
from training.crops import crop
from training.data import Labels
from training.datasets.multiband import load_archive, load_packets, scored
from training.datasets.splits import part_of_each, split
from training.datasets.tables import load_objects
from training.simulate.catalogues import catalogue_values
from training.simulate.metadata import fit_scaler
from training.simulate.spectra import PARTIAL, load_templates, simulate_spectra
from training.stream.cache import Cache
from training.stream.examples import (
    CHUNK,
    Cut,
    Examples,
    FrozenEncoder,
    class_indices,
    cut_versions,
    first_n,
    random_n,
    set_of,
)
from training.streams import as_streamed, load_cadences

PACKETS = "ztf_packets"
REAL_SETS = (PACKETS, "ztf_dr", "ztf_rebuilt", "stripe82", "asassn")
"""Sets that are trained on, cross-validated by star. EROS-2's is for tests alone."""
STARS_OF_CLASS = 1000
"""Training stars of each class and survey of the archive, at most."""
SPECTRUM_DRAWS = 4
"""Simulated spectra of each star of the archive, one for each version of its history: the first is whole, of the
others a share covers a part of the grid only (``training.simulate.spectra.in_part``)."""
_COLUMN = {name: i for i, name in enumerate(MODEL_FEATURES)}


def packet_colors(bp_rp: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """PS1 g - r and r - i, and r - G, of stars with Gaia's BP - RP.

    Gaia to SDSS after Riello et al. (2021, A&A 649, A3, table C.2), SDSS to PS1 after Tonry et al. (2012, ApJ 750, 99,
    table 6). Beyond the polynomials' range, -0.3 to 3, colours go on with a slope of 0.75.
    """
    x = np.clip(bp_rp, -0.3, 3.0)
    g = -np.polynomial.Polynomial((0.2199, -0.6365, -0.1548, 0.0064))(x)
    r = -np.polynomial.Polynomial((-0.09837, 0.08592, 0.1907, -0.1701, 0.02263))(x)
    i = -np.polynomial.Polynomial((-0.293, 0.6404, -0.09609, -0.002104))(x)
    redder = 0.75 * np.maximum(bp_rp - 3.0, 0.0)
    g_r, r_i = g - r + redder, r - i + redder
    return g_r * (1.0 - 0.139 + 0.007) - 0.012, r_i + g_r * (0.014 - 0.007) - 0.004, r


def as_in_catalogs(values: NDArray[np.float64], catalogued: NDArray[np.float64]) -> NDArray[np.float64]:
    """Raw values (n, MODEL_FEATURES) with AstroM3's columns (n, 34) of a catalogue."""
    result = np.array(values)
    result[:, : len(METADATA_FEATURES)] = catalogued
    return result


def as_in_packets(
    values: NDArray[np.float64], catalogued: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Raw values (n, MODEL_FEATURES) with what a packet and two bands would say, instead of a catalogue's (n, 34)."""
    result = np.array(values)
    size = len(result)

    def of_catalog(name: str) -> NDArray[np.float64]:
        column: NDArray[np.float64] = catalogued[:, METADATA_FEATURES.index(name)]
        return column

    g_r, r_i, r = packet_colors(of_catalog("bp_rp") + rng.normal(0, 0.05, size))
    # The archives' stars are brighter than those that a survey sends alerts of.
    gaia = of_catalog("phot_g_mean_mag") + rng.normal(0.5, 1.0, size)
    measured = np.nan_to_num(values[:, _COLUMN["blue_range"]], nan=0.0)
    red = values[:, _COLUMN["red_range"]]
    # V alone counts as blue: what has a range in red has been seen in several bands.
    several = np.isfinite(red)
    for name, column in {
        "phot_g_mean_mag": gaia,
        "ps1_g_r": g_r + rng.normal(0, 0.04, size),
        "ps1_r_i": r_i + rng.normal(0, 0.04, size),
        "ps1_i_z": 0.5 * r_i + rng.normal(0, 0.04, size),
        "ps1_r_mag": gaia + r,
        "star_score": np.clip(1.0 - rng.exponential(0.03, size), 0.5, 1.0),
        "total_g_r": g_r + rng.normal(0, 0.06, size),
        "total_r_mag": gaia + r,
        # A star's amplitude falls with wavelength, and V lies between g and r.
        "blue_range": np.where(measured > 0, measured * np.where(several, 1.0, rng.uniform(1.0, 1.25, size)), np.nan),
        "red_range": np.where(several, red, np.where(measured > 0, measured * rng.uniform(0.75, 1.0, size), np.nan)),
    }.items():
        result[:, _COLUMN[name]] = column
    return result


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """Standardised metadata of n examples."""

    values: NDArray[np.float32]
    known: NDArray[np.bool_]
    present: NDArray[np.bool_]

    @staticmethod
    def of(examples: Examples, raw: NDArray[np.float64], scaler: Scaler) -> Inputs:
        """From raw values (n, MODEL_FEATURES) at the positions of ``examples``."""
        inputs = standardise(raw, examples.ra, examples.dec, scaler)
        return Inputs(inputs.values, inputs.known, inputs.present)

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> Inputs:
        """Some of them."""
        return Inputs(self.values[rows], self.known[rows], self.present[rows])


@dataclass(frozen=True, slots=True, eq=False)
class Material:
    """All that a head is trained on."""

    repository: Path
    """Whose encoders embedded the light curves and spectra."""
    archive: Examples
    catalogued: Inputs
    """Of the archive's stars, with a catalogue's values."""
    packet_like: Inputs
    """Of the same, with a packet's."""
    spectrum: NDArray[np.float16]
    """(n, 512) embeddings of simulated spectra of the archive's stars, another one for each version of a history."""
    real: Examples
    real_inputs: Inputs
    usable: NDArray[np.bool_]
    """(m,) which of ``real`` have a label that counts."""
    scaler: Scaler

    @property
    def is_packet(self) -> NDArray[np.bool_]:
        """(m,) which of ``real`` come from packets."""
        result: NDArray[np.bool_] = set_of(self.real.kind) == PACKETS
        return result


def prepare_material(repository: Path, data: Path, seed: int, cache: Cache, report: Callable[[str], None]) -> Material:
    """All histories, encoded by ``repository``; kept in ``cache``."""
    encoder = FrozenEncoder(repository)
    real = cache.examples("real.npz", lambda: _real_examples(encoder, data))
    stars = _ArchiveStars(data, seed)
    archive = cache.examples(f"archive-{seed}.npz", lambda: stars.examples(encoder))
    draws = cache.array(f"spectrum-draws-{seed}.npz", lambda: stars.spectra(repository, data))
    rows = stars.rows_of(archive)
    version = np.array([int(kind.split("/")[1]) for kind in archive.kind])
    spectrum: NDArray[np.float16] = draws[version % SPECTRUM_DRAWS, np.searchsorted(stars.rows, rows)]
    rng = np.random.default_rng([seed, 13])
    # What a catalogue has of an archive's star, and what a packet would say of it.
    catalogued = stars.catalogued[rows]
    raw = [as_in_catalogs(archive.values, catalogued), as_in_packets(archive.values, catalogued, rng)]
    counts = np.isin(set_of(real.kind).astype(str), REAL_SETS) & (real.label >= 0)
    training = np.array([kind.startswith("train") for kind in archive.kind])
    seen = np.concatenate([real.values[counts], raw[0][training][::4], raw[1][training][::4]])
    scaler = fit_scaler(seen)
    report(
        f"{len(archive)} histories of {len(stars.rows)} stars of ASAS and Catalina, {int(counts.sum())} of real ones"
    )
    return Material(
        repository,
        archive,
        Inputs.of(archive, raw[0], scaler),
        Inputs.of(archive, raw[1], scaler),
        spectrum,
        real,
        Inputs.of(real, real.values, scaler),
        counts,
        scaler,
    )


def _real_examples(encoder: FrozenEncoder, data: Path) -> Examples:
    """Real stars, whole and cut; the kind is the set's name and the number of the version, 0 for the whole."""
    parts = []
    for name in REAL_SETS:
        objects = scored(load_packets(data) if name == PACKETS else load_archive(data, name))
        cuts: tuple[Cut, ...] = (first_n, first_n) if name == PACKETS else (first_n, random_n, first_n, random_n, few)
        label = class_indices(objects.label)
        for number, version in enumerate([objects, *cut_versions(objects, cuts, seed=1)]):
            parts.append(encoder.examples(version.states, label, f"{name}/{number}", f"{name}, version {number}"))
    return Examples.join(parts)


def few(curve: LightCurve, rng: np.random.Generator) -> LightCurve:
    """The first 2 to 30 points."""
    return first_n(curve, rng, 2, 30)


_CUTS: dict[str, tuple[Cut | None, ...]] = {
    "train": (None, first_n, crop, random_n),
    "val": (None, first_n, random_n),
}
"""Versions of an archive's light curves in one band, as observed."""
_STREAMED: tuple[Cut | None, ...] = (None, first_n)
"""Those in several bands, which follow."""
SEVERAL_BANDS = {part: range(len(cuts), len(cuts) + len(_STREAMED)) for part, cuts in _CUTS.items()}
"""Their numbers in an example's kind."""


class _ArchiveStars:
    """Stars of ASAS and Catalina: training stars, up to STARS_OF_CLASS of each class, and all validation stars."""

    def __init__(self, data: Path, seed: int) -> None:
        self._table = load_objects(data)
        self._seed = seed
        table = self._table
        label = class_indices(table.label)
        labels = Labels.from_columns(table.label, table.label_quality, table.label_is_coarse)
        training, validation, test = split(table, seed)
        rng = np.random.default_rng([seed, 14])
        # Catalina's EW, of which some are EB, are trained on but not calibrated with.
        own = training[(labels.weight[training] == 1.0) & (label[training] >= 0)]
        chosen = [
            rng.permutation(own[(table.survey[own] == survey) & (label[own] == number)])[:STARS_OF_CLASS]
            for survey in np.unique(table.survey)
            for number in range(len(CLASS_NAMES))
        ]
        self.training = np.sort(np.concatenate(chosen))
        self.validation = validation[labels.scored[validation]]
        self.rows = np.sort(np.concatenate([self.training, self.validation]))
        self._label = label
        self._cadences = load_cadences(data)
        self._part = part_of_each(len(table), (training, validation, test))
        self.catalogued, self._code = catalogue_values(table, data, self._part, rng)

    def rows_of(self, examples: Examples) -> NDArray[np.intp]:
        """The table's row of each example."""
        row = {name: i for i, name in enumerate(self._table.object_id)}
        return np.array([row[name] for name in examples.star], np.intp)

    def examples(self, encoder: FrozenEncoder) -> Examples:
        """Whole light curves, parts of them, and the same in several bands (``training.streams``).

        The kind is ``train`` or ``val`` and the number of the version.
        """
        parts = []
        for name, rows in (("train", self.training), ("val", self.validation)):
            for number, cut in enumerate(_CUTS[name]):
                states = self._states(rows, cut, number)
                parts.append(encoder.examples(states, self._label[rows], f"{name}/{number}", name))
            for number, cut in zip(SEVERAL_BANDS[name], _STREAMED, strict=True):
                states = self._states(rows, cut, number, streamed=True)
                parts.append(encoder.examples(states, self._label[rows], f"{name}/{number}", f"{name}, several bands"))
        return Examples.join(parts)

    def _states(
        self, rows: NDArray[np.intp], cut: Cut | None, number: int, streamed: bool = False
    ) -> list[ObjectState]:
        table = self._table
        curves = [table.light_curves[i] for i in rows]
        generators = [np.random.default_rng([self._seed, number, int(i)]) for i in rows]
        if streamed:
            curves = self._in_several_bands(rows, curves, generators)
        if cut is not None:
            curves = [cut(curve, rng) for curve, rng in zip(curves, generators, strict=True)]
        return table.states(rows, curves)

    def _in_several_bands(
        self, rows: NDArray[np.intp], curves: list[LightCurve], generators: Sequence[np.random.Generator]
    ) -> list[LightCurve]:
        bp_rp = self.catalogued[rows, METADATA_FEATURES.index("bp_rp")]
        g_r = packet_colors(bp_rp)[0]
        result = []
        for first in track(range(0, len(rows), CHUNK), "Light curves in several bands"):
            own = slice(first, first + CHUNK)
            whole = assemble_light_curves(curves[own])
            quality = whole.features[:, LIGHT_CURVE_FEATURES.index("r2_period")]
            for i, curve in enumerate(curves[own]):
                label = CLASS_NAMES[self._label[rows[first + i]]]
                result.append(
                    as_streamed(
                        curve, label, 1.0 / float(whole.period[i]), float(quality[i]), self._cadences,
                        generators[first + i], float(g_r[first + i]),
                    )
                )  # fmt: skip
        return result

    def spectra(self, repository: Path, data: Path) -> NDArray[np.float16]:
        """(SPECTRUM_DRAWS, m, 512) embeddings of simulated spectra of each of ``rows``.

        Validation stars, with which the head is calibrated, have templates that no training star has.
        """
        session = onnxruntime.InferenceSession(repository / "spectrum_encoder" / "1" / "model.onnx")
        templates, table = load_templates(data), self._table
        rng = np.random.default_rng([self._seed, 15])
        result = np.zeros((SPECTRUM_DRAWS, len(self.rows), 512), np.float16)
        for draw in range(SPECTRUM_DRAWS):
            for first in track(range(0, len(self.rows), CHUNK), f"Simulating spectra {draw + 1}/{SPECTRUM_DRAWS}"):
                rows = self.rows[first : first + CHUNK]
                spectra = simulate_spectra(
                    templates, list(table.label[rows]), list(table.survey[rows]), self._code[rows],
                    self._part[rows] > 0, rng, partial=PARTIAL if draw else 0.0,
                )  # fmt: skip
                result[draw, first : first + CHUNK] = session.run(["embedding"], {"spectra": spectra})[0]
        return result
