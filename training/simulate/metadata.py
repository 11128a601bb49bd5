"""Catalogue values for training: real where the star has any, the rest from a real donor star of its class.

Every assumption is listed with its source in docs/simulation.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow.csv as pa_csv
from numpy.typing import NDArray

from broker.assemble.metadata import Scaler, absolute_values, galactic
from broker.records import METADATA_FEATURES
from broker.taxonomy import CLASS_NAMES
from training.datasets.tables import ObjectTable

_COLUMN: Final = {name: index for index, name in enumerate(METADATA_FEATURES)}


class Provenance(IntEnum):
    """Where a value comes from."""

    UNKNOWN = 0
    REAL = 1
    DONOR = 2
    TYPE = 3


@dataclass(frozen=True, slots=True, eq=False)
class Donors:
    """Real ASAS-SN variables with Gaia, 2MASS and WISE values."""

    name: NDArray[np.object_]
    class_name: NDArray[np.object_]
    values: NDArray[np.float64]
    """(d, 34) in the order of METADATA_FEATURES, NaN where not in the table."""
    ra: NDArray[np.float64]
    dec: NDArray[np.float64]
    log_period: NDArray[np.float64]
    """log10 of the period in days, NaN where the star has none."""
    part: NDArray[np.intp]
    """Which stars a donor gives to: half of each class to training stars (0), a quarter to validation stars (1)
    and a quarter to test stars (2)."""


_DONOR_COLUMNS: Final = {
    "asassn_asassn_mag": "mean_vmag",
    "gaia_phot_g_mean_mag": "phot_g_mean_mag",
    "gaia_bp_rp": "bp_rp",
    "gaia_parallax": "parallax",
    "gaia_parallax_error": "parallax_error",
    "asassn_pmRA": "pmra",
    "asassn_e_pmRA": "pmra_error",
    "asassn_pmDE": "pmdec",
    "asassn_e_pmDE": "pmdec_error",
    "asassn_J-K": "j_k",
    "asassn_W1-W2": "w1_w2",
    "gaia_ruwe": "ruwe",
}


def load_donors(data: Path) -> Donors:
    """Rows of ``asassn_gaia.csv`` whose cross-match is good and whose class is certain and one of the ten.

    Miras need only match in position.
    """
    table = pa_csv.read_csv(data / "asassn_gaia.csv")
    class_name = np.array(table["asassn_class"].to_pylist(), object)

    def flag(name: str) -> NDArray[np.bool_]:
        return np.array([str(x).lower() == "true" for x in table[name].to_pylist()])

    # A Mira varies by many magnitudes, so that it fails the table's test of like magnitudes by its nature.
    good = flag("crossmatch_quality_ok") | (flag("position_match_ok") & (class_name == "M"))
    good &= np.isin(class_name.astype(str), CLASS_NAMES)
    values = np.full((len(table), len(METADATA_FEATURES)), np.nan)

    def numbers(name: str) -> NDArray[np.float64]:
        return np.array([np.nan if v is None else float(v) for v in table[name].to_pylist()])

    for source, target in _DONOR_COLUMNS.items():
        values[:, _COLUMN[target]] = numbers(source)
    log_period = np.log10(numbers("asassn_period_asassn"))
    rank = np.zeros(len(table), np.intp)
    for name in CLASS_NAMES:
        rows = np.flatnonzero(good & (class_name == name))
        rank[rows] = np.arange(len(rows))
    return Donors(
        np.array(table["asassn_asassn_id"].to_pylist(), object)[good], class_name[good], values[good],
        numbers("gaia_ra")[good], numbers("gaia_dec")[good], log_period[good], np.maximum(rank % 4 - 1, 0)[good],
    )  # fmt: skip


# Main-sequence BP-RP, J-K and M_G of B8 to A7 (Pecaut & Mamajek 2013, ApJS 208, 9, and its online table): no
# ASAS-SN class has alpha2 CVn stars to give, which are ASAS's ROT.
_EARLY_TYPES: Final = np.array(
    [[18.0, -0.10, -0.09, 0.0], [20.0, 0.0, 0.0, 1.1], [22.0, 0.10, 0.04, 1.5], [25.0, 0.21, 0.09, 2.0],
     [27.0, 0.29, 0.12, 2.3]]
)  # fmt: skip


def simulate_metadata(
    table: ObjectTable,
    donors: Donors,
    code: NDArray[np.float64],
    period: NDArray[np.float64],
    part: NDArray[np.intp],
    rng: np.random.Generator,
) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """Values (n, 34) and Provenance (n, 34); objects without a label keep only what is real.

    A donor is one of the three of the object's class nearest in log period (``period`` (n,) days, NaN where
    not found), and gives its absolute magnitude and colours: parallax and proper motion are scaled to the
    distance at which the donor would have the object's real mean magnitude. ``part`` (n,) is 0 for training, 1
    for validation and 2 for test stars, which share no donors: what a model knows of its donors by heart must
    help it neither in calibration nor in the test. ``code`` (n,) is the spectral type, for the one class that has
    no donors.
    """
    size = len(table)
    values = np.full((size, len(METADATA_FEATURES)), np.nan)
    provenance = np.zeros(values.shape, np.uint8)
    log_period = np.log10(np.where(period > 0, period, np.nan))
    for name in CLASS_NAMES:
        early = (table.label == name) & (table.survey == "asas") & (name == "ROT")
        for which in range(3):
            rows = np.flatnonzero((table.label == name) & (part == which) & ~early)
            pool = np.flatnonzero((donors.class_name == name) & (donors.part == which))
            if len(rows) and len(pool):
                _from_donors(table, donors, rows, pool, log_period, values, provenance, rng)
            # What says nothing of a star's type comes from donors of any class, so that the columns which are
            # known do not tell the class.
            rows = np.flatnonzero(early & (part == which))
            if len(rows):
                pool = np.flatnonzero(donors.part == which)
                _from_donors(table, donors, rows, pool, np.full(len(table), np.nan), values, provenance, rng)
        _from_type(table, code, np.flatnonzero(early), values, provenance, rng)
    _real_values(table, values, provenance)
    return values, provenance


def _from_donors(
    table: ObjectTable,
    donors: Donors,
    rows: NDArray[np.intp],
    pool: NDArray[np.intp],
    log_period: NDArray[np.float64],
    values: NDArray[np.float64],
    provenance: NDArray[np.uint8],
    rng: np.random.Generator,
) -> None:
    distance = np.nan_to_num(np.abs(log_period[rows][:, None] - donors.log_period[pool]), nan=1.0)
    nearest = np.argsort(distance + rng.uniform(0, 0.05, distance.shape), axis=1)[:, : min(3, len(pool))]
    donor = pool[nearest[np.arange(len(rows)), rng.integers(0, nearest.shape[1], len(rows))]]
    given = donors.values[donor].copy()
    # The donors are few: a little scatter keeps their values from being recognised one by one.
    shift = table.mean_magnitude[rows] - given[:, _COLUMN["mean_vmag"]] + rng.normal(0, 0.2, len(rows))
    nearer = 10.0 ** (-0.2 * shift)
    for name in ("parallax", "pmra", "pmdec"):
        given[:, _COLUMN[name]] *= nearer
    given[:, _COLUMN["phot_g_mean_mag"]] += table.mean_magnitude[rows] - given[:, _COLUMN["mean_vmag"]]
    for name, scatter in (("bp_rp", 0.05), ("j_k", 0.03), ("w1_w2", 0.02)):
        given[:, _COLUMN[name]] += rng.normal(0, scatter, len(rows))
    given[:, _COLUMN["parallax"]] += rng.normal(0, given[:, _COLUMN["parallax_error"]])
    values[rows] = given
    provenance[rows] = np.where(np.isfinite(given), Provenance.DONOR, Provenance.UNKNOWN)


def _from_type(
    table: ObjectTable,
    code: NDArray[np.float64],
    rows: NDArray[np.intp],
    values: NDArray[np.float64],
    provenance: NDArray[np.uint8],
    rng: np.random.Generator,
) -> None:
    color, j_k, absolute = (np.interp(code[rows], _EARLY_TYPES[:, 0], _EARLY_TYPES[:, k]) for k in (1, 2, 3))
    apparent = table.mean_magnitude[rows]
    parallax = 100.0 * 10.0 ** (0.2 * (absolute + rng.normal(0, 0.5, len(rows)) - apparent))
    error = rng.uniform(0.02, 0.06, len(rows))  # the donors' own range
    for name, column in {
        "phot_g_mean_mag": apparent - 0.02,
        "bp_rp": color + rng.normal(0, 0.08, len(rows)),
        "j_k": j_k + rng.normal(0, 0.05, len(rows)),
        "w1_w2": rng.normal(0, 0.03, len(rows)),
        "parallax": parallax + rng.normal(0, error),
        "parallax_error": error,
    }.items():
        values[rows, _COLUMN[name]] = column
        provenance[rows, _COLUMN[name]] = Provenance.TYPE


def _real_values(table: ObjectTable, values: NDArray[np.float64], provenance: NDArray[np.uint8]) -> None:
    """Overwrite what is known of the star itself."""
    cos_l, sin_b = galactic(table.ra, table.dec)
    for name, column in {
        "mean_vmag": table.mean_magnitude,
        "phot_g_mean_mag": table.measured["gaia_g"],
        "bp_rp": table.measured["gaia_bp"] - table.measured["gaia_rp"],
        "parallax": np.where(table.measured["hip_e_plx"] > 0, table.measured["hip_plx"], np.nan),
        "parallax_error": np.where(np.isfinite(table.measured["hip_plx"]), table.measured["hip_e_plx"], np.nan),
        "cos_l": cos_l,
        "sin_b": sin_b,
    }.items():
        known = np.isfinite(column)
        values[known, _COLUMN[name]] = column[known]
        provenance[known, _COLUMN[name]] = Provenance.REAL


def fit_scaler(values: NDArray[np.float64], least: int = 100) -> Scaler:
    """Robust mean and deviation of each column as the model sees it; NaN where fewer than ``least`` are known."""
    seen = absolute_values(values)
    mean, std = np.full(seen.shape[1], np.nan), np.full(seen.shape[1], np.nan)
    for column in range(seen.shape[1]):
        known = seen[np.isfinite(seen[:, column]), column]
        if len(known) >= least:
            low, middle, high = np.percentile(known, [16, 50, 84])
            mean[column], std[column] = middle, max(0.5 * (high - low), 1e-3)
    return Scaler(mean, std)


def compare_with_astrom3(
    values: NDArray[np.float64], published: dict[str, dict[str, float]]
) -> list[tuple[str, int, float, float, float, float]]:
    """(column, known, our mean, our deviation, AstroM3's mean, its deviation) of each published column.

    Over raw values: the published numbers (17,421 real stars) are of apparent magnitudes.
    """
    rows = []
    for name, numbers in published.items():
        if name in _COLUMN:
            known = values[np.isfinite(values[:, _COLUMN[name]]), _COLUMN[name]]
            if len(known):
                rows.append(
                    (name, len(known), float(known.mean()), float(known.std()), numbers["mean"], numbers["std"])
                )
    return rows
