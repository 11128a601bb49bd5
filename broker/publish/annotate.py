"""From arrays over a batch to one annotation for each alert."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from math import isfinite, nan
from typing import Final, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

from broker.anomaly.combine import Combined
from broker.anomaly.scores import AnomalyScores
from broker.assemble.inputs import MODALITIES, ModelInputs
from broker.assemble.lightcurve import MIN_POINTS
from broker.inference import Predictions
from broker.inference.manifest import Manifest
from broker.inference.orbital import orbital_periods
from broker.inference.physics import rule_out
from broker.publish.disagreement import CONFIDENCE, compare
from broker.records import Alert, Annotation, KnownObject, ObjectState, PhotometryKind
from broker.state.objects import ANOTHER_NIGHT, is_artefact, is_moving
from broker.taxonomy import CLASS_NAMES, NOT_CLASSIFIED, OTHER, PARENTS

_IN_PARENT: Final = np.array([[name in names for names in PARENTS.values()] for name in CLASS_NAMES], np.float64)
"""(10, parents) 1 where a class is the parent's."""
_MOVES: Final = "a known body of the solar system, as the survey says"


def annotate(
    alerts: Sequence[Alert],
    received_mjd: Sequence[float],
    inputs: ModelInputs,
    states: Sequence[ObjectState],
    predictions: Predictions,
    anomalies: AnomalyScores,
    manifest: Manifest,
    other_threshold: float | None = None,
    confidence: float = CONFIDENCE,
    published_mjd: Sequence[float | None] | None = None,
    *,
    combined: Combined | None = None,
) -> list[Annotation]:
    """What is published about each alert; all arguments are of the same length.

    ``published_mjd`` is when each alert was written to its topic, MJD UTC; None where that is not known.

    An alert whose object has no usable modality, or for which the model gave no probabilities (a row of
    zeros), is NotClassified, with the reason. One whose ``predictions.other`` is at least ``other_threshold`` (None for
    the manifest's; 1 for never) is Other, and so is, whatever the model says, a known body of the solar system, a
    classified alert that its survey takes for an artefact, with the survey's probability where that is higher, and a
    star whose period its class cannot have (``broker.inference.physics``).
    ``confidence`` is the probability from which the model's answer counts against that of a catalogue of known variable
    stars (``broker.publish.disagreement``).
    """
    ruled = rule_out(predictions.probabilities, inputs.light_curve)
    plausible, period, impossible = ruled
    classified: NDArray[np.bool_] = np.any(plausible, axis=1)
    # In double precision, so that the published probabilities sum to 1 to the last digits.
    probabilities = plausible.astype(np.float64)
    probabilities[classified] /= probabilities[classified].sum(axis=1, keepdims=True)
    moves = np.array([is_moving(a, s.light_curve) for a, s in zip(alerts, states, strict=True)], np.bool_)
    bogus = (
        np.array([is_artefact(a, s.light_curve) for a, s in zip(alerts, states, strict=True)], np.bool_) & classified
    )
    unreal = np.array(
        [1.0 - (a.real_bogus or 0.0) if b else np.nan for a, b in zip(alerts, bogus, strict=True)], np.float64
    )
    p_other = np.where(moves, 1.0, np.fmax(predictions.other.astype(np.float64), np.fmax(unreal, ruled.other)))
    called = manifest.called_other(
        p_other, inputs.present, inputs.light_curve.detections, inputs.light_curve.is_difference, other_threshold
    )
    other = moves | bogus | impossible | (classified & called)
    # The model's ten are of an object that is one of them.
    probabilities[other] *= 1.0 - p_other[other, None]
    in_parents = (probabilities @ _IN_PARENT).tolist()
    answered = classified | other
    plausible[moves] = 0.0
    sets = manifest.prediction_sets(plausible, inputs.present, inputs.light_curve.detections)
    for row in np.flatnonzero(other).tolist():
        sets[row] = (OTHER.name, *sets[row])
    named = [_named(*row) for row in zip(probabilities.tolist(), p_other.tolist(), classified, other, strict=True)]
    leading = plausible.argmax(axis=1)
    published = orbital_periods(inputs.light_curve, period, leading, classified & ~other)
    periods, photometric, p_others = published.period.tolist(), period.tolist(), p_other.tolist()
    detections = inputs.light_curve.detections.tolist()
    combined = combined or Combined.none(len(alerts))
    scores = combined.score.tolist()
    after = [nan] * len(alerts) if combined.after_answers is None else combined.after_answers.tolist()
    answers = [0] * len(alerts) if combined.answers is None else combined.answers.tolist()
    percentiles, distances = anomalies.percentile.tolist(), anomalies.distance.tolist()
    return [
        Annotation(
            **_of_alert(alert, states[row], received, None if published_mjd is None else published_mjd[row]),
            class_names=named[row][0],
            probabilities=named[row][1],
            modalities=tuple(compress(MODALITIES, inputs.present[row])),
            detections=detections[row],
            period=periods[row] if isfinite(periods[row]) else None,
            photometric_period=photometric[row] if isfinite(photometric[row]) else None,
            period_ambiguous=bool(published.ambiguous[row]),
            prediction_set=sets[row],
            parents=dict(zip(PARENTS, in_parents[row], strict=True)) if answered[row] else {},
            p_other=p_others[row] if isfinite(p_others[row]) else None,
            anomaly_score=percentiles[row] if good and anomalies.reasons[row] is None else None,
            anomaly_distance=distances[row] if good and anomalies.reasons[row] is None else None,
            anomaly_reason=anomalies.reasons[row] if good else None,
            combined_anomaly=scores[row] if good and isfinite(scores[row]) else None,
            anomaly_parts=combined.parts[row] if good else {},
            anomaly_explanation=combined.reasons[row] if good else None,
            anomaly_after_answers=after[row] if good and isfinite(after[row]) else None,
            anomaly_answers=answers[row] if good and isfinite(after[row]) else None,
            neighbours=anomalies.neighbours[row] if good else (),
            reference_set_version=anomalies.version if good else None,
            classifier_name=manifest.classifier_name,
            model_version=manifest.identity,
            reason=_reason(
                alert,
                bool(moves[row]),
                bool(bogus[row]),
                good,
                inputs.present[row],
                detections[row],
                f"a period of {photometric[row]:.4g} d, which no star of class {CLASS_NAMES[leading[row]]} has"
                if impossible[row]
                else None,
            ),
            known_as=_compared(states[row].known_as, named[row], in_parents[row], sets[row], confidence),
        )
        for row, (alert, received, good) in enumerate(zip(alerts, received_mjd, classified, strict=True))
    ]


def not_classified(alert: Alert, state: ObjectState, received_mjd: float, reason: str) -> Annotation:
    """What is published about an alert that could not be given to the model."""
    return Annotation(
        **_of_alert(alert, state, received_mjd),
        class_names=(NOT_CLASSIFIED.name,),
        probabilities=(1.0,),
        modalities=(),
        detections=len(alert.light_curve),
        period=None,
        reason=reason,
    )


class _OfAlert(TypedDict):
    """The fields of an annotation that the model has no part in."""

    survey: str
    alert_id: int
    source_id: int
    object_id: str
    ra: float
    dec: float
    mjd: float
    ingest_mjd: float
    alert_publish_mjd: float | None
    real_bogus: float | None
    solar_system: bool
    star_score: float | None
    survey_detections: int | None
    associated: tuple[str, ...]
    remembered_points: int | None
    history_start: float | None
    history: Literal["remembered", "packet", "missing", ""]
    time_system: str


def _of_alert(alert: Alert, state: ObjectState, received_mjd: float, published_mjd: float | None = None) -> _OfAlert:
    return {
        "survey": alert.survey,
        "alert_id": alert.alert_id,
        "source_id": alert.source_id,
        "object_id": alert.object_id,
        "ra": alert.ra,
        "dec": alert.dec,
        "mjd": alert.mjd,
        "ingest_mjd": received_mjd,
        "alert_publish_mjd": published_mjd,
        "real_bogus": alert.real_bogus,
        "solar_system": alert.solar_system,
        "star_score": alert.star_score,
        "survey_detections": alert.survey_detections,
        "associated": state.associated,
        "remembered_points": state.remembered,
        "history_start": state.history_start,
        "history": _history(alert, state),
        "time_system": state.time_system,
    }


def _named(
    probabilities: list[float], p_other: float, classified: bool, other: bool
) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Names and probabilities of the classes of one alert."""
    if other:
        return (*CLASS_NAMES, OTHER.name), (*probabilities, p_other)
    return (CLASS_NAMES, tuple(probabilities)) if classified else ((NOT_CLASSIFIED.name,), (1.0,))


def _compared(
    known_as: tuple[KnownObject, ...],
    named: tuple[tuple[str, ...], tuple[float, ...]],
    in_parents: list[float],
    prediction_set: tuple[str, ...],
    confidence: float,
) -> tuple[KnownObject, ...]:
    """Known stars and whether the model disagrees, which it can only where one of the ten classes is its answer."""
    if not known_as or named[0] != CLASS_NAMES:
        return known_as
    parents = dict(zip(PARENTS, in_parents, strict=True))
    return compare(known_as, dict(zip(*named, strict=True)), parents, prediction_set, confidence)


def _history(alert: Alert, state: ObjectState) -> Literal["remembered", "packet", "missing", ""]:
    """Whether points beyond the packet's were remembered, and whether there should have been some."""
    if state.remembered is None:
        return ""
    if state.remembered:
        return "remembered"
    curve = alert.light_curve
    if alert.survey_detections is None or alert.first_detected is None or not len(curve):
        return "packet"
    sent = np.count_nonzero(curve.kind == PhotometryKind.DETECTION)
    reaches_back = alert.first_detected >= curve.mjd[0] - ANOTHER_NIGHT
    return "packet" if reaches_back or alert.survey_detections <= sent else "missing"


def _reason(
    alert: Alert,
    moves: bool,
    bogus: bool,
    classified: bool,
    present: NDArray[np.bool_],
    detections: int,
    impossible: str | None,
) -> str | None:
    """Why there is no class, or Other, and the bands that were left out; None where there is nothing to say."""
    said = []
    if moves:
        said.append(_MOVES)
    elif bogus:
        said.append(f"an artefact of one night, by the survey's score of {alert.real_bogus:.2f}")
    elif impossible is not None:
        said.append(impossible)
    elif not classified and present.any():
        said.append("the model gave no finite probabilities")
    elif not classified:
        said.append(
            f"{detections} usable photometric points of at least {MIN_POINTS} needed, no spectrum, no colour, "
            "too few catalogue values"
        )
    if alert.unknown_bands:
        said.append(f"points left out, of bands that are not known: {', '.join(alert.unknown_bands)}")
    return "; ".join(said) or None
