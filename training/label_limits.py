"""How far the labels themselves agree: what bounds the score of any model of them, as Markdown."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from broker.catalog.types import known_type
from broker.taxonomy import CLASS_INDEX, CLASS_NAMES
from training.data import Labels
from training.datasets.confusion import name_counts
from training.datasets.multiband import ARCHIVES, has_archive, load_archive
from training.datasets.splits import split
from training.datasets.tables import ObjectTable, load_objects
from training.datasets.vsx import DISPUTED, types_at
from training.evaluate import TEST_SETS

MIRA_AMPLITUDE = 2.0
"""Magnitudes in V that the central 95 % of a Mira's points span at least, where its label rests on nothing else."""


def central_range(table: ObjectTable, row: int) -> float:
    """Magnitudes that the central 95 % of an object's points span; 0 where there are fewer than two points."""
    flux = table.light_curves[row].flux.astype(np.float64)
    if len(flux) < 2:
        return 0.0
    low, high = np.quantile(-2.5 * np.log10(flux), [0.025, 0.975])
    return float(high - low)


def label_limits(table: ObjectTable, labels: Labels, rows: NDArray[np.intp]) -> str:
    """Two tables over ``rows`` (m,): M and SR by amplitude, and what Catalina calls ASAS's stars.

    The first counts ASAS's long-period variables on either side of MIRA_AMPLITUDE, by their label and whether the GCVS
    confirms it (gold) or not (std). The smaller number of each side is wrong for whoever knows only the amplitude,
    which is what separates the two classes.
    """
    asas = rows[(table.survey[rows] == "asas") & labels.scored[rows]]
    own = asas[np.isin(labels.index[asas], [CLASS_INDEX["M"], CLASS_INDEX["SR"]])]
    large = np.array([central_range(table, row) >= MIRA_AMPLITUDE for row in own.tolist()], np.bool_)
    lines = ["| amplitude (mag) | M, gold | M, std | SR, gold | SR, std |", "|---|---:|---:|---:|---:|"]
    fewer = 0
    for name, side in ((f"below {MIRA_AMPLITUDE}", ~large), (f"{MIRA_AMPLITUDE} and more", large)):
        counts = {
            (label, quality): int(np.sum(side & (table.label[own] == label) & (table.label_quality[own] == quality)))
            for label in ("M", "SR")
            for quality in ("gold", "std")
        }
        lines.append(f"| {name} | " + " | ".join(str(count) for count in counts.values()) + " |")
        fewer += min(counts["M", "gold"] + counts["M", "std"], counts["SR", "gold"] + counts["SR", "std"])
    lines.append(f"\nBy amplitude alone {fewer} of these {len(own)} are wrong, {fewer / len(asas):.1%} of the")
    lines.append(f"{len(asas)} ASAS stars that can be scored.\n")
    lines.append("| ASAS's class | " + " | ".join(f"Catalina: {name}" for name in CLASS_NAMES) + " |")
    lines.append("|---|" + "---:|" * len(CLASS_NAMES))
    named = name_counts(table, labels.index, labels.named, rows, "asas", "css")
    for name, row in zip(CLASS_NAMES, named, strict=True):
        lines.append(f"| {name} | " + " | ".join(str(count or "") for count in row.tolist()) + " |")
    return "\n".join(lines) + "\n"


def label_disputes(data: Path) -> str:
    """A line for each class of each set: stars with a label, how many VSX disputes, and what it says instead."""
    table = load_objects(data)
    usable = np.isin(table.label_quality.astype(str), ["gold", "std", DISPUTED])
    test = np.zeros(len(table), np.bool_)
    test[split(table, 0)[2]] = True
    sets = [
        (name, *(column[own] for column in (table.label, table.label_quality, table.ra, table.dec)), test[own])
        for name, own in ((name, (table.survey == survey) & usable) for survey, name in TEST_SETS.items())
    ]
    for name in ARCHIVES:
        if has_archive(data, name):
            objects = load_archive(data, name)
            ra, dec = (np.array([getattr(s, axis) for s in objects.states], np.float64) for axis in ("ra", "dec"))
            sets.append((name, objects.label, objects.quality, ra, dec, np.ones(len(objects), np.bool_)))
    lines = ["| set | label | stars | disputed | of test stars | VSX has instead |", "|---|---|---:|---:|---:|---|"]
    for name, label, quality, ra, dec, is_test in sets:
        for own in CLASS_NAMES:
            rows = np.flatnonzero(label == own)
            disputed = rows[quality[rows] == DISPUTED]
            if len(disputed):
                types = types_at(data, ra[disputed], dec[disputed])
                instead = Counter(known_type(found[0]).class_name or found[0] for found in types)
                said = ", ".join(f"{kind} {count}" for kind, count in instead.most_common(4))
                tests = f"{int(is_test[disputed].sum())} of {int(is_test[rows].sum())}"
                lines.append(f"| {name} | {own} | {len(rows)} | {len(disputed)} | {tests} | {said} |")
    return "\n".join(lines) + "\n"
