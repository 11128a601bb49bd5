"""Which objects each row of the table has: whole archives and packets, and first and random parts of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from broker.assemble.metadata import widened
from broker.bands import BAND_CODE
from broker.records import SOURCE_FEATURES, PhotometryKind, SourceMetadata
from broker.taxonomy import CLASS_NAMES, PARENTS
from training.data import Labels
from training.datasets.multiband import (
    ALERT_LABELS,
    ARCHIVES,
    LabelledObjects,
    first_points,
    has_archive,
    in_bands_of,
    load_archive,
    load_packets,
    scored,
)
from training.datasets.splits import part_of_each, split
from training.datasets.tables import ObjectTable, load_objects
from training.datasets.vsx import DISPUTED
from training.evaluate import TEST_SETS
from training.simulate.catalogues import catalogue_values

PACKET_ROW = "ZTF packets"
PACKET_ROWS = (
    ("below 5", 0, 5), ("5 to 9", 5, 10), ("10 to 19", 10, 20), ("20 and more", 20, 10**6),
    ("below 10", 0, 10), ("10 and more", 10, 10**6),
)  # fmt: skip
"""Names and bounds of the numbers of detections in packets; the last two hold the others."""
EROS_PARENTS = {"rr_lyrae": "RRLyrae", "eclipsing": "Eclipsing", "long_period": "LongPeriod"}
"""Our names of EROS-2's classes."""
EW_OR_EB = "EW or EB"
CATALOGUED = "with catalogue values (partly simulated)"
_LUMPED: dict[str, tuple[str, ...]] = {
    EW_OR_EB: ("EW", "EB"), **{name: (name,) for name in CLASS_NAMES if name not in ("EW", "EB")},
}  # fmt: skip
CLASSES_THEMSELVES: dict[str, tuple[str, ...]] = {name: (name,) for name in CLASS_NAMES}


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One row of the table, before it is scored."""

    name: str
    objects: LabelledObjects
    groups: Mapping[str, Sequence[str]]


def live_rows(data: Path, seed: int = 0) -> list[Row]:
    """All rows for which ``data`` has files; those of stars whose label may be scored."""
    sets = {name: load_archive(data, name) for name in ARCHIVES if has_archive(data, name)}
    sets |= {"packets": load_packets(data)} if (data / "multiband" / ALERT_LABELS).exists() else {}
    ten = {name: scored(objects) for name, objects in sets.items()}
    rows: list[tuple[str, LabelledObjects]] = []
    if "ztf_dr" in ten:
        ztf = ten["ztf_dr"]
        rows.append(("ZTF data release, all points", ztf))
        long = ztf.take([i for i, s in enumerate(ztf.states) if len(s.light_curve) >= 50])
        for n in (50, 20):
            rows.append((f"ZTF data release, {n} random points", random_points(long, n, seed)))
            rows.append((f"ZTF data release, first {n} points", first_points(long, n)))
        rows.append(("ZTF data release, 20 random points in r", random_points(only_band(long, "ztf:r"), 20, seed)))
    if "ztf_rebuilt" in ten:
        rows.append(("rebuilt from ZTF alerts", ten["ztf_rebuilt"]))
    if "packets" in ten:
        packets = ten["packets"]
        count = np.array([np.sum(s.light_curve.kind != PhotometryKind.LIMIT) for s in packets.states])
        for name, low, high in PACKET_ROWS:
            rows.append(
                (f"{PACKET_ROW}, {name} detections", packets.take(np.flatnonzero((count >= low) & (count < high))))
            )
    if "stripe82" in ten:
        rows.append(("Stripe 82 RR Lyrae as sdss:*", ten["stripe82"]))
        rows.append(("Stripe 82 RR Lyrae as lsst:*", in_bands_of(ten["stripe82"], "sdss", "lsst")))
    if "asassn" in ten:
        rows.append(("ASAS-SN", ten["asassn"]))
    found = [Row(name, objects, CLASSES_THEMSELVES) for name, objects in rows]
    if (data / "asas_v.parquet").exists():
        found += one_band_tests(data)
    if "eros2" in sets:
        eros = sets["eros2"]
        known = eros.take([i for i, parent in enumerate(eros.label) if parent in EROS_PARENTS])
        known = replace(known, label=np.array([EROS_PARENTS[parent] for parent in known.label], object))
        groups = {name: PARENTS[name] for name in EROS_PARENTS.values()}
        found.append(Row("EROS-2, by parent", known, groups))
    return [row for row in found if len(row.objects)]


def one_band_tests(data: Path) -> list[Row]:
    """The test stars of ASAS and Catalina, which no model was trained on, as in ``training.run``.

    Alone, and with catalogue values, of which most are those of a donor of the class that no other stars share. A
    row each also with the labels that VSX disputes, as it was before, and Catalina's EW, of which some are EB.
    """
    table = load_objects(data)
    labels = Labels.from_columns(table.label, table.label_quality, table.label_is_coarse)
    splits = split(table, 0)
    test = splits[2]
    values, _ = catalogue_values(table, data, part_of_each(len(table), splits), np.random.default_rng(0))
    values = widened(values)[:, : len(SOURCE_FEATURES)].astype(np.float32)
    disputed = (table.label_quality == DISPUTED) & (labels.index >= 0)
    tests = []
    for survey, name in TEST_SETS.items():
        own = table.survey[test] == survey
        rows = test[own & labels.scored[test]]
        alone = _of_table(table, rows, survey)
        metadata = [SourceMetadata(values[i]) for i in rows]
        catalogued = [replace(s, metadata=m) for s, m in zip(alone.states, metadata, strict=True)]
        tests.append(Row(f"{name}, one band, held-out stars", alone, CLASSES_THEMSELVES))
        tests.append(Row(f"{name}, {CATALOGUED}", replace(alone, states=catalogued), CLASSES_THEMSELVES))
        fine = ~table.label_is_coarse[test]
        before = test[own & fine & (labels.scored[test] | disputed[test])]
        name_before = f"{name}, one band, and those whose label VSX disputes"
        tests.append(Row(name_before, _of_table(table, before, survey), CLASSES_THEMSELVES))
        coarse = _of_table(table, test[own & ~fine & ~disputed[test]], survey)
        lumped = np.full(len(coarse), EW_OR_EB, object)
        tests.append(Row(f"{name}'s EW, as EW or EB, one band, held-out stars", replace(coarse, label=lumped), _LUMPED))
    return tests


def _of_table(table: ObjectTable, rows: NDArray[np.intp], name: str) -> LabelledObjects:
    states = table.states(rows)
    none = np.full(len(rows), None, object)
    return LabelledObjects(name, states, table.label[rows], table.label_quality[rows], none)


def random_points(objects: LabelledObjects, n: int, seed: int) -> LabelledObjects:
    """``n`` points of each light curve, wherever they are; of shorter ones all."""
    curves = []
    for row, state in enumerate(objects.states):
        size = len(state.light_curve)
        chosen = np.random.default_rng([seed, n, row]).permutation(size)[:n]
        curves.append(state.light_curve.take(np.sort(chosen)))
    return objects.with_light_curves(curves)


def only_band(objects: LabelledObjects, band: str) -> LabelledObjects:
    """The points in one band."""
    code = BAND_CODE[band]
    return objects.with_light_curves(
        [s.light_curve.take(np.flatnonzero(s.light_curve.band == code)) for s in objects.states]
    )


def joined(parts: Sequence[LabelledObjects]) -> LabelledObjects:
    """Objects of several sets as one."""
    states = [state for part in parts for state in part.states]
    columns = (np.concatenate([getattr(p, name) for p in parts]) for name in ("label", "quality", "original"))
    return LabelledObjects(parts[0].name, states, *columns)
