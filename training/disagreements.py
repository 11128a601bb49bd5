"""How often the model contradicts a catalogue of known variable stars with confidence, and who is right then.

Stars that the model was not trained on, each with the star of VSX at its place. Where model and VSX disagree
(``broker.publish.disagreement``), a third source says whose label is wrong: ASAS's own label of the star, else the
GCVS. Neither is independent of VSX, which began with the GCVS and took over much of ASAS; where they differ, VSX was
revised.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from broker.catalog.memory import MemoryCatalogs
from broker.catalog.presets import KNOWN
from broker.catalog.types import known_type
from broker.publish.disagreement import compare
from broker.records import KnownObject
from broker.taxonomy import CLASS_INDEX, CLASS_NAMES, PARENT_OF, PARENTS
from training.datasets.multiband import ALERT_LABELS, ARCHIVES, LabelledObjects, has_archive, load_archive, load_packets
from training.datasets.splits import split
from training.datasets.tables import load_objects
from training.evaluate import TEST_SETS
from training.live import Answers, Classify

SETS = ("ztf_dr", "ztf_rebuilt", "asassn")
_YEAR_2010 = 55_197.0  # MJD, about the middle of what is there


@dataclass(frozen=True, slots=True)
class Disagreements:
    """One row of the table."""

    data: str
    stars: int
    """With a star of VSX at their place, whose type is one of ours and certain, and an answer of the model."""
    kind: str
    """``parent``: the model says another parent, ``class``: another class of the same parent."""
    flagged: int
    for_model: int
    """Of those: the third source agrees with the model and not with VSX."""
    for_vsx: int
    """The third source agrees with VSX and not with the model."""
    undecided: int
    """There is none, or it agrees with neither, or with both."""
    agreed: int
    """Stars on whose type VSX and the third source agree."""
    flagged_of_agreed: int
    """Of those: where the model contradicts both."""
    examples: tuple[str, ...]
    """Types of VSX and what the model says instead, the most frequent first."""


def disagreements(classify: Classify, data: Path, confidence: float) -> list[Disagreements]:
    """Both kinds for each set of stars that ``data`` has."""
    catalogs = MemoryCatalogs()
    catalogs.load("vsx", data / "vsx_2022.parquet", KNOWN)
    catalogs.load("gcvs", data / "gcvs.parquet", KNOWN)
    rows = []
    for name, objects, own_label in _sets(data):
        at = np.array([(s.ra, s.dec, _YEAR_2010) for s in objects.states], np.float64)
        known = [{k.catalogue: k for k in found.known_as} for found in catalogs.look_up(*at.T)]
        kept = [i for i, of in enumerate(known) if "vsx" in of and known_type(of["vsx"].type).comparable]
        if not kept:
            continue
        objects = objects.take(kept)
        third = [
            _third(objects.label[row] if own_label and objects.quality[row] != "weak" else None, known[i].get("gcvs"))
            for row, i in enumerate(kept)
        ]
        answers = classify(objects)
        rows += [
            _row(name, kind, [known[i]["vsx"] for i in kept], third, answers, confidence)
            for kind in ("parent", "class")
        ]
    return rows


def _sets(data: Path) -> list[tuple[str, LabelledObjects, bool]]:
    """Names, stars, and whether their labels are another source than VSX's."""
    sets = [(name, load_archive(data, name), False) for name in SETS if name in ARCHIVES and has_archive(data, name)]
    if (data / "multiband" / ALERT_LABELS).exists():
        sets.append(("packets", load_packets(data), False))
    if (data / "asas_v.parquet").exists():
        table = load_objects(data)
        test = split(table, 0)[2]
        for survey, name in TEST_SETS.items():
            rows = test[table.survey[test] == survey]
            states = table.states(rows)
            none = np.full(len(rows), None, object)
            objects = LabelledObjects(survey, states, table.label[rows], table.label_quality[rows], none)
            # VSX has Catalina's stars with Catalina's types: 97 of 100 are the same, so that they are no third source.
            sets.append((name, objects, survey != "css"))
    return sets


def _third(label: str | None, gcvs: KnownObject | None) -> frozenset[str]:
    """The classes that the third source allows; none where there is none that is certain."""
    for text in (label, gcvs.type if gcvs is not None else None):
        if text and known_type(text).comparable:
            return known_type(text).classes
    return frozenset()


def _row(
    name: str, kind: str, known: Sequence[KnownObject], third: Sequence[frozenset[str]], answers: Answers,
    confidence: float,
) -> Disagreements:  # fmt: skip
    count: Counter[str] = Counter()
    examples: Counter[str] = Counter()
    for row, (star, classes) in enumerate(zip(known, third, strict=True)):
        probabilities = answers.probabilities[row]
        if not probabilities.any():
            continue
        count["stars"] += 1
        of_vsx = known_type(star.type).classes
        agreed = bool(of_vsx & classes)
        count["agreed"] += agreed
        by_name = dict(zip(CLASS_NAMES, probabilities.tolist(), strict=True))
        parents = {parent: sum(by_name[c] for c in names) for parent, names in PARENTS.items()}
        in_set = [c for c in CLASS_NAMES if answers.in_set[row, CLASS_INDEX[c]]]
        (compared,) = compare([star], by_name, parents, in_set, confidence)
        if compared.disagrees != kind:
            continue
        best = max(by_name, key=by_name.__getitem__)
        said = frozenset(PARENTS[PARENT_OF[best]] if kind == "parent" else (best,))
        count["flagged"] += 1
        count["flagged_of_agreed"] += agreed
        with_model = bool(said & classes)
        count["for_model"] += with_model and not agreed
        count["for_vsx"] += agreed and not with_model
        examples[f"{star.type} -> {best}"] += 1
    return Disagreements(
        name, count["stars"], kind, count["flagged"], count["for_model"], count["for_vsx"],
        count["flagged"] - count["for_model"] - count["for_vsx"], count["agreed"], count["flagged_of_agreed"],
        tuple(f"{text} ({n})" for text, n in examples.most_common(6)),
    )  # fmt: skip


def markdown(rows: Sequence[Disagreements]) -> str:
    """The table."""
    head = [field.replace("_", " ") for field in asdict(rows[0])] if rows else []
    lines = [f"| {' | '.join(head)} |", "|---|---:|---|" + "---:|" * 6 + "---|"]
    for row in rows:
        values = [*list(asdict(row).values())[:-1], ", ".join(row.examples)]
        lines.append("| " + " | ".join(str(value).replace("|", "/") for value in values) + " |")
    return "\n".join(lines) + "\n"
