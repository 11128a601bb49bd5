"""What is made of the model's answer: class, parent, Other."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from broker.anomaly.scores import AnomalyScores
from broker.assemble import assemble
from broker.inference import Predictions
from broker.inference.manifest import CALIBRATION_BINS, MODALITY_SUBSETS, Manifest, load_manifest
from broker.inference.physics import OTHER_PROBABILITY
from broker.publish.annotate import annotate
from broker.publish.annotation import best_of, to_json, to_record
from broker.publish.topics import OutputTopics
from broker.records import Alert, Annotation, KnownObject, LightCurve, ObjectState
from broker.taxonomy import CLASS_INDEX, PARENTS
from broker.web.templating import render
from tests.random_models import MODEL_REPO

NAN = float("nan")
RNG = np.random.default_rng(0)
CURVE = LightCurve(
    np.sort(RNG.uniform(59_000, 59_200, 30)), RNG.normal(1e5, 1e4, 30).astype(np.float32), np.full(30, 1e3, np.float32),
    np.zeros(30, np.float32), np.zeros(30, np.uint8), np.zeros(30, np.uint8),
)  # fmt: skip
ALERT = Alert(
    survey="ztf", alert_id=1, source_id=1, object_id="ZTF18abcdefg", ra=10.0, dec=20.0, mjd=float(CURVE.mjd[-1]),
    band="ztf:g", light_curve=CURVE, schema_version="4.02",
)  # fmt: skip


def manifest(**changes: object) -> Manifest:
    own = load_manifest(MODEL_REPO, verify_models=False)
    thresholds = {name: tuple(0.2 for _ in row) for name, row in own.conformal_thresholds.items()}
    return own.model_copy(update={"conformal_thresholds": thresholds, "other_thresholds": None, **changes})


def everywhere(threshold: float | None) -> dict[str, tuple[float, ...]] | None:
    """One threshold of Other for all modalities and detections."""
    return None if threshold is None else dict.fromkeys(MODALITY_SUBSETS, (threshold,) * len(CALIBRATION_BINS))


def say(
    probabilities: dict[str, float],
    other: float = NAN,
    *,
    alert: Alert = ALERT,
    curve: LightCurve = CURVE,
    model: Manifest | None = None,
    threshold: float | None = None,
    known_as: tuple[KnownObject, ...] = (),
    period: float = NAN,
) -> Annotation:
    """The annotation of one alert, for which the model says this; of no period, since physics is another test's."""
    row = np.zeros((1, 10), np.float32)
    for name, value in probabilities.items():
        row[0, CLASS_INDEX[name]] = value
    states = [ObjectState(alert.object_id, alert.ra, alert.dec, curve, known_as=known_as)]
    inputs = assemble(states)
    inputs.light_curve.period[:] = period
    predictions = Predictions(row, np.zeros((1, 512), np.float32), np.array([other], np.float32))
    nothing = np.array([NAN])
    anomalies = AnomalyScores("r1", nothing, nothing, [()], ["no set"])
    (annotation,) = annotate(
        [alert], [61_000.0], inputs, states, predictions, anomalies, model or manifest(), threshold
    )
    return annotation


def topics(annotation: Annotation) -> Sequence[str]:
    return [name.removeprefix("trifid.ztf.") for name in OutputTopics("trifid", 0.9).of(annotation)]


def test_parents_are_sums() -> None:
    found = say({"RRAB": 0.5, "RRC": 0.375, "EW": 0.0625, "ROT": 0.0625})
    assert found.parents == {
        "Eclipsing": 0.0625, "RRLyrae": 0.875, "DeltaScuti": 0.0, "LongPeriod": 0.0, "Rotational": 0.0625,
    }  # fmt: skip
    assert (found.best_class, found.parent, found.p_other) == ("RRAB", "RRLyrae", None)
    assert topics(found) == ["all", "rrab", "rrlyrae"]


def test_the_leading_parent_need_not_be_that_of_the_leading_class() -> None:
    found = say({"ROT": 0.375, "EA": 0.25, "EB": 0.25, "EW": 0.125})
    assert (found.best_class, found.parent) == ("ROT", "Eclipsing")
    assert found.parents["Eclipsing"] == 0.625
    assert topics(found) == ["all", "rot", "eclipsing"]


@pytest.mark.parametrize(
    ("probabilities", "in_set", "answer"),
    [
        ({"RRAB": 0.9, "RRC": 0.1}, ("RRAB",), "RRAB"),
        ({"RRAB": 0.5, "RRC": 0.4, "EW": 0.1}, ("RRAB", "RRC"), "RRLyrae"),
        ({"EB": 0.4, "EW": 0.3, "EA": 0.3}, ("EB", "EA", "EW"), "Eclipsing"),
        ({"RRC": 0.5, "EW": 0.5}, ("EW", "RRC"), None),
        ({"ROT": 1.0}, ("ROT",), "ROT"),
    ],
)
def test_a_set_of_one_parent_is_an_answer(
    probabilities: dict[str, float], in_set: tuple[str, ...], answer: str | None
) -> None:
    found = say(probabilities)
    assert set(found.prediction_set) == set(in_set)
    assert found.answer == answer


def test_from_the_threshold_on_it_is_other() -> None:
    model = manifest(other_thresholds=everywhere(0.5))
    below = say({"RRAB": 0.75, "RRC": 0.25}, 0.4375, model=model)
    assert (below.best_class, below.p_other, below.probabilities[CLASS_INDEX["RRAB"]]) == ("RRAB", 0.4375, 0.75)
    assert topics(below) == ["all", "rrab", "rrlyrae"]
    found = say({"RRAB": 0.75, "RRC": 0.25}, 0.75, model=model)
    assert found.class_names[-1] == found.best_class == found.answer == "Other"
    assert found.probabilities[CLASS_INDEX["RRAB"]] == 0.1875
    assert (found.best_probability, found.p_other, sum(found.probabilities)) == (0.75, 0.75, 1.0)
    assert (found.parent, found.parents["RRLyrae"]) == (None, 0.25)
    assert found.prediction_set == ("Other", "RRAB", "RRC")
    assert found.classified
    assert found.reason is None
    assert topics(found) == ["all", "other"]


def test_other_leads_also_where_a_class_is_more_probable_than_a_low_threshold() -> None:
    found = say({"M": 1.0}, 0.375, model=manifest(other_thresholds=everywhere(0.25)))
    assert (found.best_class, found.best_probability, max(found.probabilities)) == ("Other", 0.375, 0.625)
    record = json.loads(to_json(to_record(found, "trifid", 60_000.0)))
    best = best_of(record["classifications"])
    assert (best["className"], best["probability"]) == ("Other", 0.375)
    page = render(
        "classify.html", path="/classify", tokens=False, signed_in=False, problem=None, limit=1, kind="lightcurve",
        name="star.csv", found={"remarks": [], "annotations": [record]},
    )  # fmt: skip
    row = page.partition("<tbody>")[2]
    assert re.findall(r"<td><abbr[^>]*>(\w+)</abbr></td><td class=\"n\">([\d.]+)</td>", row) == [("Other", "0.38")]


def test_the_class_of_a_record_without_other_is_its_most_probable() -> None:
    for said in ({"EA": 0.25, "EB": 0.75}, {"EW": 0.5, "EA": 0.5}, {}):
        found = say(said)
        record = to_record(found, "trifid", 60_000.0)
        assert best_of(record["classifications"])["className"] == found.best_class


@pytest.mark.parametrize(
    ("own", "setting", "best"),
    [
        (None, None, "M"), (0.5, None, "Other"), (0.5, 0.875, "M"), (0.875, 0.5, "Other"), (None, 0.5, "Other"),
        (0.5, 1.0, "M"),
    ],
)  # fmt: skip
def test_the_setting_wins_over_the_models_own_threshold(own: float | None, setting: float | None, best: str) -> None:
    assert say({"M": 1.0}, 0.75, model=manifest(other_thresholds=everywhere(own)), threshold=setting).best_class == best


def test_what_the_model_says_nothing_of_is_not_other() -> None:
    found = say({"M": 1.0}, NAN, threshold=0.01)
    assert (found.best_class, found.p_other) == ("M", None)
    nothing = say({}, 0.99, threshold=0.5)
    assert (nothing.class_names, nothing.parents, nothing.parent, nothing.answer) == (
        ("NotClassified",),
        {},
        None,
        None,
    )
    assert not nothing.classified
    assert topics(nothing) == ["all", "notclassified"]


def test_a_body_of_the_solar_system_is_other_whatever_the_model_says() -> None:
    tonight = CURVE.take(np.array([29]))
    asteroid = replace(ALERT, solar_system=True, light_curve=tonight)
    for probabilities in ({"RRAB": 1.0}, {}):
        found = say(probabilities, alert=asteroid, curve=tonight)
        assert (found.best_class, found.p_other, sum(found.probabilities)) == ("Other", 1.0, 1.0)
        assert found.reason == "a known body of the solar system, as the survey says"
        assert found.prediction_set == ("Other",)
        assert topics(found) == ["all", "other"]
    lsst = replace(asteroid, survey="lsst", object_id="sso:7", light_curve=CURVE)
    assert say({"RRAB": 1.0}, alert=lsst).best_class == "Other"


def test_a_cepheid_is_other_by_its_period() -> None:
    """A sawtooth of 3.4 days: the model takes it for an RR Lyrae star, whose shape it has."""
    mjd = np.sort(RNG.uniform(59_000, 59_700, 150))
    flux = 1e5 * (1.0 - 0.5 * (mjd / 3.4 % 1.0)) + RNG.normal(0, 2e3, 150)
    curve = LightCurve(
        mjd, flux.astype(np.float32), np.full(150, 2e3, np.float32), np.zeros(150, np.float32),
        np.zeros(150, np.uint8), np.zeros(150, np.uint8),
    )  # fmt: skip
    state = ObjectState(ALERT.object_id, ALERT.ra, ALERT.dec, curve)
    period = float(assemble([state]).light_curve.period[0])
    assert period == pytest.approx(3.4, rel=1e-3)
    found = say({"RRAB": 0.96, "EA": 0.04}, 0.01, curve=curve, period=period, threshold=1.0)
    assert (found.best_class, found.period) == ("Other", period)
    assert found.p_other == pytest.approx(OTHER_PROBABILITY)
    assert sum(found.probabilities) == pytest.approx(1.0)
    assert found.prediction_set[0] == "Other"
    assert found.reason is not None
    assert found.reason.endswith(" d, which no star of class RRAB has")
    assert topics(found) == ["all", "other"]
    assert say({"EA": 0.96, "RRAB": 0.04}, curve=curve, period=period).best_class == "EA"


def test_an_artefact_of_one_night_is_other_by_the_surveys_score() -> None:
    tonight = CURVE.take(np.array([29]))
    artefact = replace(ALERT, real_bogus=0.25, light_curve=tonight)
    found = say({"RRAB": 0.5, "EW": 0.5}, 0.125, alert=artefact, curve=tonight)
    assert (found.best_class, found.p_other, found.probabilities[CLASS_INDEX["RRAB"]]) == ("Other", 0.75, 0.125)
    assert (found.prediction_set[0], topics(found)) == ("Other", ["all", "other"])
    assert found.reason == "an artefact of one night, by the survey's score of 0.25"
    assert say({"RRAB": 1.0}, 0.875, alert=artefact, curve=tonight).p_other == 0.875  # the model's, where it is higher
    assert say({"RRAB": 1.0}, alert=artefact, curve=tonight, threshold=1.0).p_other == 0.75  # a model without Other
    nothing = say({}, alert=artefact, curve=tonight)
    assert (nothing.best_class, nothing.p_other) == ("NotClassified", None)


@pytest.mark.parametrize(
    ("changes", "nights"),
    [
        ({}, 30),  # poor today, and detected before
        ({"first_detected": ALERT.mjd - 3.0}, 1),  # as the survey says
        ({"real_bogus": 0.3}, 1),
        ({"real_bogus": None}, 1),
        ({"survey": "lsst"}, 1),  # whose score is another
    ],
)
def test_what_is_no_artefact_keeps_its_class(changes: dict[str, Any], nights: int) -> None:
    curve = CURVE.take(np.arange(30 - nights, 30))
    alert = replace(ALERT, **{"real_bogus": 0.25, "light_curve": curve, **changes})
    found = say({"RRAB": 1.0}, 0.125, alert=alert, curve=curve)
    assert (found.best_class, found.p_other, found.reason) == ("RRAB", 0.125, None)


def test_a_star_that_an_asteroid_passes_by_keeps_its_class() -> None:
    """It was detected on other nights."""
    found = say({"RRAB": 1.0}, alert=replace(ALERT, solar_system=True))
    assert (found.best_class, found.reason) == ("RRAB", None)


def test_bands_that_are_not_known_are_named() -> None:
    found = say({"RRAB": 1.0}, alert=replace(ALERT, unknown_bands=("w", "x")))
    assert (found.best_class, found.classified) == ("RRAB", True)
    assert found.reason == "points left out, of bands that are not known: w, x"
    nothing = say({}, alert=replace(ALERT, unknown_bands=("w",)))
    assert nothing.reason is not None
    assert nothing.reason.endswith("; points left out, of bands that are not known: w")


def test_every_parent_has_a_topic() -> None:
    every = OutputTopics("trifid", 0.9, ("ztf",)).every()
    for kind in (*PARENTS, "Other", "NotClassified", "RRAB", "all", "anomaly"):
        assert f"trifid.ztf.{kind.lower()}" in every
    assert len(every) == len(set(every)) == 10 + 5 + 4 + 1


def test_known_stars_are_published_and_compared_and_change_nothing_else() -> None:
    known = (KnownObject("vsx", "AB Xyz", "EW", 0.4, 0.1, "EW"), KnownObject("gcvs", None, "RR", 0.55, 1.0, "RRLyrae"))
    sure = {"RRAB": 0.96, "EW": 0.04}
    plain, found = say(sure), say(sure, known_as=known)
    assert [(k.catalogue, k.class_name, k.disagrees) for k in found.known_as] == [
        ("vsx", "EW", "parent"), ("gcvs", "RRLyrae", None),
    ]  # fmt: skip
    assert found.catalogue_disagrees
    assert replace(found, known_as=()) == plain
    assert not say({"RRAB": 0.9, "EW": 0.1}, known_as=known).catalogue_disagrees
    assert say({}, known_as=known).known_as == known  # NotClassified: nothing to compare
    assert say(sure, 0.9, known_as=known, threshold=0.5).known_as == known  # Other


@pytest.mark.parametrize(
    ("class_name", "other", "expected"),
    [("EW", NAN, (0.5, 0.25, True)), ("ROT", NAN, (0.25, 0.25, False)), ("EW", 0.75, (0.25, 0.25, False))],
)
def test_only_eclipsing_binaries_have_orbits(
    class_name: str, other: float, expected: tuple[float, float, bool]
) -> None:
    found = say({class_name: 1.0}, other, model=manifest(other_thresholds=everywhere(0.5)), period=0.25)
    assert (found.period, found.photometric_period, found.period_ambiguous) == expected
    assert say({class_name: 1.0}).photometric_period is None
