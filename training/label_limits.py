"""How far the labels themselves agree: what bounds the score of any model of them, as Markdown."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from broker.taxonomy import CLASS_INDEX, CLASS_NAMES
from training.data import Labels
from training.datasets.confusion import name_counts
from training.datasets.tables import ObjectTable

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
    named = name_counts(table, labels.index, labels.scored, rows, "asas", "css")
    for name, row in zip(CLASS_NAMES, named, strict=True):
        lines.append(f"| {name} | " + " | ".join(str(count or "") for count in row.tolist()) + " |")
    return "\n".join(lines) + "\n"
