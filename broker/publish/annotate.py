"""From arrays over a batch to one annotation for each alert."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from math import isfinite
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from broker.anomaly.scores import AnomalyScores
from broker.assemble.inputs import MODALITIES, ModelInputs
from broker.assemble.lightcurve import MIN_POINTS
from broker.inference import Predictions
from broker.inference.manifest import Manifest
from broker.physics import rule_out
from broker.records import Alert, Annotation, ObjectState, PhotometryKind
from broker.state.objects import ANOTHER_NIGHT
from broker.taxonomy import NOT_CLASSIFIED


def annotate(
    alerts: Sequence[Alert],
    received_mjd: Sequence[float],
    inputs: ModelInputs,
    states: Sequence[ObjectState],
    predictions: Predictions,
    anomalies: AnomalyScores,
    manifest: Manifest,
) -> list[Annotation]:
    """What is published about each alert; all arguments are of the same length.

    An alert whose object has no usable modality, or for which the model gave no probabilities (a row of
    zeros), is NotClassified, with the reason.
    """
    plausible, period = rule_out(predictions.probabilities, inputs.light_curve)
    classified: NDArray[np.bool_] = np.any(plausible, axis=1)
    # In double precision, so that the published probabilities sum to 1 to the last digits.
    probabilities = plausible.astype(np.float64)
    probabilities[classified] /= probabilities[classified].sum(axis=1, keepdims=True)
    sets = manifest.prediction_sets(plausible, inputs.present, inputs.light_curve.detections)
    periods = period.tolist()
    detections = inputs.light_curve.detections.tolist()
    percentiles, distances = anomalies.percentile.tolist(), anomalies.distance.tolist()
    return [
        Annotation(
            survey=alert.survey,
            alert_id=alert.alert_id,
            source_id=alert.source_id,
            object_id=alert.object_id,
            ra=alert.ra,
            dec=alert.dec,
            mjd=alert.mjd,
            class_names=manifest.classes if good else (NOT_CLASSIFIED.name,),
            probabilities=tuple(probabilities[row].tolist()) if good else (1.0,),
            modalities=tuple(compress(MODALITIES, inputs.present[row])),
            detections=detections[row],
            period=periods[row] if isfinite(periods[row]) else None,
            prediction_set=sets[row],
            anomaly_score=percentiles[row] if good and anomalies.reasons[row] is None else None,
            anomaly_distance=distances[row] if good and anomalies.reasons[row] is None else None,
            anomaly_reason=anomalies.reasons[row] if good else None,
            neighbours=anomalies.neighbours[row] if good else (),
            reference_set_version=anomalies.version if good else None,
            classifier_name=manifest.classifier_name,
            model_version=manifest.identity,
            ingest_mjd=received,
            reason=None if good else _reason(inputs.present[row], detections[row]),
            real_bogus=alert.real_bogus,
            solar_system=alert.solar_system,
            star_score=alert.star_score,
            associated=states[row].associated,
            remembered_points=states[row].remembered,
            history_start=states[row].history_start,
            survey_detections=alert.survey_detections,
            history=_history(alert, states[row]),
        )
        for row, (alert, received, good) in enumerate(zip(alerts, received_mjd, classified, strict=True))
    ]


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


def _reason(present: NDArray[np.bool_], detections: int) -> str:
    if present.any():
        return "the model gave no finite probabilities"
    return (
        f"{detections} usable photometric points of at least {MIN_POINTS} needed, no spectrum, no colour, "
        "too few catalogue values"
    )
