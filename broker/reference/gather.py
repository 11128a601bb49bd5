"""What the stream's objects add to a reference set: a sample of the state, as far as it is known what they are."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

import numpy as np

from broker.anomaly.statistics import Objects
from broker.assemble import assemble
from broker.batch import IncomingMessage, Received
from broker.catalog.types import known_type
from broker.errors import ConfigurationError
from broker.feedback.answers import ARTEFACT
from broker.offline import batched
from broker.pipeline import Pipeline
from broker.records import Alert, Annotation, ObjectState, ObservedSpectrum, Spectrum
from broker.reference.rebuild import Seen
from broker.reference.seen import seen_of
from broker.state import Store
from broker.taxonomy import CLASS_NAMES, OTHER, PARENTS

SURE: Final = 0.9
"""Probability from which the model counts as sure of an object."""
_BATCH: Final = 256
_NOTHING: Final = Spectrum(np.empty(0), np.empty(0, np.float32), np.empty(0, np.float32))
AnswerOf = Mapping[tuple[str, str], tuple[str, str | None]]
"""Kind and class of what people answered, by survey and object id."""


@dataclass(frozen=True, slots=True, eq=False)
class Gathered:
    """What was found."""

    seen: Seen
    counts: Counter[str]
    """Objects by what became of them: ``looked at``, ``too short``, ``not of the ten classes``, ``set aside by
    answers``, ``known``, ``sure``."""


def gather(
    alerts: Iterable[tuple[Alert, int]],
    store: Store,
    pipeline: Pipeline,
    *,
    least: int,
    most: int,
    probability: float = SURE,
    answers: AnswerOf | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Gathered:
    """The first ``most`` objects with ``least`` detections and more, of ``alerts`` as ``latest_alerts`` gives them.

    ``probability`` is as SURE; ``progress`` is told how many objects have been looked at. Raises ConfigurationError
    where there is no such object, DependencyUnavailableError where a server is unavailable.
    """
    counts: Counter[str] = Counter()

    def long_enough() -> Iterable[Alert]:
        for alert, detections in alerts:
            counts["looked at"] += 1
            if detections >= least:
                yield alert
            else:
                counts["too short"] += 1

    parts: list[Seen] = []
    for some in batched(islice(long_enough(), most), _BATCH):
        there = _with_states(store, some)
        if not there:
            continue
        received = [Received(alert, IncomingMessage(b"", alert.mjd)) for alert, _ in there]
        states = [state for _, state in there]
        annotations, _ = pipeline.annotate_inputs(received, states, assemble(states))
        rows: list[int] = []
        told: list[tuple[str, bool]] = []
        for row, annotation in enumerate(annotations):
            answer = (answers or {}).get((annotation.survey, annotation.object_id))
            found = known(annotation, answer, probability)
            if found is None:
                counts["not of the ten classes" if answer is None else "set aside by answers"] += 1
                continue
            counts["known"] += 1
            counts["sure"] += found[1]
            rows.append(row)
            told.append(found)
        if rows:
            names = [f"{annotations[row].survey}:{annotations[row].object_id}" for row in rows]
            classes, sure = [one[0] for one in told], [one[1] for one in told]
            parts.append(seen_of(pipeline.engine, names, [states[row] for row in rows], classes, sure))
        progress(counts["looked at"])
    if not parts:
        raise ConfigurationError(
            f"of {counts['looked at']} objects in the state none has {least} detections and a class among the ten"
        )
    return Gathered(joined(parts), counts)


def known(annotation: Annotation, answer: tuple[str, str | None] | None, probability: float) -> tuple[str, bool] | None:
    """The class of the ten that an object is taken for, and whether that is sure; None where it is none, or strange.

    A person's class counts most. What is answered to be interesting is no known star, and neither is what the model
    calls Other. Sure is what a catalogue of variable stars names as the model does, or where none contradicts, what has
    the ``probability``.
    """
    kind, label = answer or (None, None)
    if kind == "interesting" or label in (OTHER.name, ARTEFACT):
        return None
    if label in CLASS_NAMES:
        return str(label), True
    best = annotation.best_class
    if best not in CLASS_NAMES or (label is not None and best not in PARENTS[label]):
        return None
    types = [known_type(star.type) for star in annotation.known_as]
    named = [one.classes for one in types if one.comparable and one.classes]
    if any(best not in classes for classes in named):
        return best, False
    return best, any(len(classes) == 1 for classes in named) or annotation.best_probability >= probability


def joined(parts: Sequence[Seen]) -> Seen:
    """Several, one at least, as one."""
    names, class_names, sure = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("names", "class_names", "sure")
    )
    return Seen(names, class_names, sure, Objects.joined([part.objects for part in parts]))


def _with_states(store: Store, alerts: Sequence[Alert]) -> list[tuple[Alert, ObjectState]]:
    """Objects with all that is known of them; what is gone by now is left out, and each is there once."""
    named = [
        ObservedSpectrum("", alert.ra, alert.dec, math.nan, _NOTHING, alert.survey, alert.object_id) for alert in alerts
    ]
    found: dict[tuple[str, str], tuple[Alert, ObjectState]] = {}
    for alert, several in zip(alerts, store.objects_of(named), strict=True):
        name = (alert.survey, alert.object_id)
        for own, state in several:
            if (own.survey, own.object_id) == name:
                found[name] = own, state
    return list(found.values())
