"""Which objects of the stream count as known, and how they were when younger."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from broker.anomaly.strata import DETECTION_BINS
from broker.records import Annotation, KnownObject, LightCurve, PhotometryKind
from broker.reference.gather import known
from broker.reference.seen import younger
from broker.taxonomy import CLASS_NAMES, NOT_CLASSIFIED, OTHER


def annotation(best: str, probability: float, *types: str) -> Annotation:
    names = (*CLASS_NAMES, OTHER.name) if best == OTHER.name else CLASS_NAMES
    rest = (1.0 - probability) / (len(names) - 1)
    stars = tuple(KnownObject("VSX", f"star {i}", one, None, 0.1) for i, one in enumerate(types))
    return Annotation(
        survey="ztf", alert_id=1, source_id=1, object_id="ZTF1", ra=0.0, dec=0.0, mjd=60_000.0, ingest_mjd=60_000.0,
        class_names=names, probabilities=tuple(probability if name == best else rest for name in names),
        modalities=("light_curve",), detections=100, period=None, known_as=stars,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("best", "probability", "types", "answer", "expected"),
    [
        ("RRAB", 0.95, (), None, ("RRAB", True)),
        ("RRAB", 0.85, (), None, ("RRAB", False)),
        ("RRAB", 0.85, ("RRAB",), None, ("RRAB", True)),  # a catalogue says the same
        ("RRAB", 0.99, ("EW",), None, ("RRAB", False)),
        ("RRAB", 0.85, ("RR",), None, ("RRAB", False)),  # which leaves the class open
        ("RRAB", 0.95, ("RR",), None, ("RRAB", True)),
        (OTHER.name, 0.6, (), None, None),
        ("RRAB", 0.99, (), ("interesting", None), None),
        ("RRAB", 0.99, (), ("class", "Other"), None),
        ("RRAB", 0.99, (), ("class", "Artefact"), None),
        ("RRAB", 0.3, (), ("class", "RRC"), ("RRC", True)),  # a person's word is enough
        (OTHER.name, 0.9, (), ("class", "RRC"), ("RRC", True)),
        ("RRAB", 0.95, (), ("class", "RRLyrae"), ("RRAB", True)),
        ("EW", 0.95, (), ("class", "RRLyrae"), None),
        ("EW", 0.6, (), ("boring", None), ("EW", False)),
        (OTHER.name, 0.6, (), ("boring", None), None),
    ],
)
def test_known(
    best: str,
    probability: float,
    types: tuple[str, ...],
    answer: tuple[str, str | None] | None,
    expected: tuple[str, bool] | None,
) -> None:
    assert known(annotation(best, probability, *types), answer, 0.9) == expected


def test_what_was_not_classified_is_not_known() -> None:
    nothing = replace(annotation("RRAB", 0.9), class_names=(NOT_CLASSIFIED.name,), probabilities=(1.0,))
    assert known(nothing, None, 0.9) is None


def test_younger_histories_are_the_first_detections_of_each_range_of_lengths() -> None:
    size = 120
    kind = np.where(np.arange(size) % 3 == 2, PhotometryKind.LIMIT, PhotometryKind.DETECTION).astype(np.uint8)
    curve = LightCurve(
        np.arange(size, dtype=np.float64), np.ones(size, np.float32), np.ones(size, np.float32),
        np.zeros(size, np.float32), np.zeros(size, np.uint8), kind,
    )  # fmt: skip
    found = younger("ztf:a", curve)  # 80 detections: 5 to 9, 10 to 19 and 20 to 49, and not 50 to 99, where it is now
    assert len(found) == 3
    for one, low, high in zip(found, DETECTION_BINS[:3], DETECTION_BINS[1:4], strict=True):
        assert low <= np.sum(one.kind == PhotometryKind.DETECTION) < high
        np.testing.assert_array_equal(one.mjd, curve.mjd[: len(one)])
    assert [len(one) for one in younger("ztf:a", curve)] == [len(one) for one in found]
    assert younger("ztf:a", curve.take(np.arange(3))) == []
