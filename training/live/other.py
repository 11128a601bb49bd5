"""How well ``Other`` tells what is none of the ten classes: the second table of ``evaluate-live``.

Each row has objects that are none of the ten, and those of the ten that they are told from, as the service sees them.
Stars that a model was trained on are scored by a fold's model that has not seen them. Weak labels (what a packet says
of itself) and simulations are named as such.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from broker.inference.manifest import CALIBRATION_BINS
from training.datasets.multiband import LabelledObjects, first_points, has_archive, load_archive, load_packets, scored
from training.datasets.outside import (
    elasticc_objects,
    gaia_stars,
    outside_of_archive,
    outside_of_ztf,
    transient_packets,
    unlabelled_packets,
)
from training.datasets.tables import load_objects
from training.live.scores import Answers, Classify
from training.simulate.transients import as_difference

PREFACE = """None of the ten: AUROC of `Other` (0.5 is chance) for objects that are none of the ten classes,
against stars of the ten. `leading` is the baseline 1 - probability of the leading class, `entropy` that of the ten
probabilities. `called Other` is the share whose probability reaches the model's threshold, of the objects outside and
of the stars. EROS-2's stars, ELAsTiCC's objects (simulated) and the packets' transients were never trained on. Moving,
galaxy, bogus and transient are weak labels by the packets' own values. The last rows are within one survey, with like
modalities: ELAsTiCC's transients against real stars (ZTF's data release, Stripe 82) as difference photometry, forced
where not detected and without a reference source, as ELAsTiCC has it; ZTF's against the stars of labelled packets."""
CEPHEID = "cepheid"
_LENGTHS = (("5 to 9", 5, 10), ("10 to 19", 10, 20), ("10 and more", 10, 10**6))
_SEED = 29


@dataclass(frozen=True, slots=True)
class OtherScore:
    """One row."""

    data: str
    outside: int
    inside: int
    auroc: float
    leading: float
    entropy: float
    called_other: float
    """Share of the objects outside that reach the threshold."""
    false_alarms: float
    """Share of the ten classes' stars that do."""


def others_of(
    name: str, answers: Answers, outside: NDArray[np.bool_], rows: NDArray[np.bool_] | None = None
) -> OtherScore | None:
    """Scores of ``rows`` that the model says something of; None unless both sides have some."""
    use = np.isfinite(answers.other) if rows is None else rows & np.isfinite(answers.other)
    side = outside[use]
    if not 0 < int(side.sum()) < len(side):
        return None
    probability = answers.of_the_ten[use]
    entropy = -(probability * np.log(np.clip(probability, 1e-12, 1))).sum(axis=1)
    called = answers.is_other[use]
    return OtherScore(
        name,
        int(side.sum()),
        int((~side).sum()),
        float(roc_auc_score(side, answers.other[use])),
        float(roc_auc_score(side, -probability.max(axis=1))),
        float(roc_auc_score(side, entropy)),
        float(called[side].mean()),
        float(called[~side].mean()),
    )


def other_scores(classify: Classify, data: Path) -> list[OtherScore]:
    """All rows that the data allow; empty for a model without ``Other``."""
    outside, inside = outside_sets(data), inside_sets(data)
    ten = Answers.joined([classify(objects) for objects in inside])
    if not np.isfinite(ten.other).any():
        return []
    found = [classify(objects) for objects in outside]
    rows: list[OtherScore | None] = []
    names = np.array([f"{o.name}: {own}" for o in outside for own in o.original])
    everything = Answers.joined([*found, ten])
    side = np.arange(len(everything.other)) < len(names)
    rows.append(others_of("all of these, against the ten", everything, side))
    for name in dict.fromkeys(names.tolist()):
        own = np.concatenate([names == name, np.ones(len(ten.other), np.bool_)])
        rows.append(others_of(name, everything, side, own))
    ends = (*CALIBRATION_BINS[1:], np.inf)
    for low, high in zip(CALIBRATION_BINS, ends, strict=True):
        cell = (everything.detections >= low) & (everything.detections < high)
        title = f"{low} and more detections" if np.isinf(high) else f"{low} to {int(high) - 1} detections"
        rows.append(others_of(title, everything, side, cell))
    if has_archive(data, "eros2"):
        eros = load_archive(data, "eros2")
        cepheid = np.array([parent == CEPHEID for parent in eros.label], np.bool_)
        for title, objects in (
            ("EROS-2: Cepheids against the rest", eros),
            ("EROS-2, first 20 points", first_points(eros, 20)),
        ):
            rows.append(others_of(title, classify(objects), cepheid))
    rows += _within_surveys(classify, data, outside[-1], outside[-2])
    return [row for row in rows if row is not None]


def _within_surveys(
    classify: Classify, data: Path, elasticc: LabelledObjects, transients: LabelledObjects
) -> list[OtherScore | None]:
    stars = [as_alerts(load_archive(data, name)) for name in ("ztf_dr", "stripe82") if has_archive(data, name)]
    rows = []
    for title, outside, inside in (
        ("ELAsTiCC against stars as alerts", elasticc, stars),
        ("ZTF's transients against stars of packets", transients, [scored(load_packets(data))]),
    ):
        parts = [classify(objects) for objects in (outside, *inside)]
        answers = Answers.joined(parts)
        side = np.arange(len(answers.other)) < len(parts[0].other)
        for name, low, high in _LENGTHS:
            own = (answers.detections >= low) & (answers.detections < high)
            rows.append(others_of(f"{title}, {name} detections", answers, side, own))
    return rows


def as_alerts(objects: LabelledObjects) -> LabelledObjects:
    """Stars as ELAsTiCC would send them: difference fluxes, none of a reference source; those detected often enough."""
    objects = scored(objects)
    curves = [
        as_difference(state.light_curve, np.random.default_rng([_SEED, row]), has_source=False, style=1)
        for row, state in enumerate(objects.states)
    ]
    kept = [row for row, curve in enumerate(curves) if curve is not None]
    seen = objects.take(kept).with_light_curves([curve for curve in curves if curve is not None])
    return replace(seen, states=[replace(state, metadata=None) for state in seen.states])


def outside_sets(data: Path) -> list[LabelledObjects]:
    """Objects that are none of the ten, of the sets that are there."""
    sets = [outside_of_archive(load_objects(data), data)] if (data / "css_v.parquet").exists() else []
    if has_archive(data, "ztf_dr"):
        sets.append(outside_of_ztf(data))
    if (data / "multiband" / "gaia_g_cbm.parquet").exists():
        sets.append(gaia_stars(data)[0])
    labelled = frozenset(state.object_id for state in load_packets(data).states)
    sets += [unlabelled_packets(data, labelled), transient_packets(data, labelled)]
    return [*sets, elasticc_objects(data)]


def inside_sets(data: Path) -> list[LabelledObjects]:
    """Real stars of the ten classes: packets, data releases, Gaia's; Stripe 82 has one class only."""
    sets = [load_packets(data)]
    sets += [load_archive(data, name) for name in ("ztf_dr", "ztf_rebuilt") if has_archive(data, name)]
    if (data / "multiband" / "gaia_g_cbm.parquet").exists():
        sets.append(gaia_stars(data)[1])
    return [scored(s) for s in sets]


def markdown(scores: Sequence[OtherScore]) -> str:
    """The rows as a table; a line that says so where the model has no ``Other``."""
    if not scores:
        return "None of the ten: this model has no output `other`.\n"
    lines = [
        PREFACE,
        "",
        "| none of the ten | objects | stars of the ten | AUROC | leading | entropy | called Other "
        "| stars called Other |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {s.data} | {s.outside} | {s.inside} | {s.auroc:.3f} | {s.leading:.3f} | {s.entropy:.3f} "
        f"| {s.called_other:.2f} | {s.false_alarms:.3f} |"
        for s in scores
    ]
    return "\n".join(lines) + "\n"
