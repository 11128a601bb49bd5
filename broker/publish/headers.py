"""Kafka headers of an annotation: enough of it to filter by without reading the message.

They have the names and values that expressions know them by (docs/watchlists.md). Numbers are decimal texts that read
back as the same double, so that a condition on a header is the condition on the field.
"""

from __future__ import annotations

from typing import Final

from broker.records import Annotation

TEXTS: Final = ("survey", "objectId", "class", "parent")
NUMBERS: Final = ("ra", "dec", "detections", "probability", "parentProbability", "anomalyScore")
KNOWN: Final = "known"
"""``true`` or ``false``."""
OPTIONAL: Final = ("parent", "parentProbability", "anomalyScore")
"""Headers that are not there where the annotation has no such value."""


def summary_headers(annotation: Annotation, parent: str | None) -> tuple[tuple[str, str], ...]:
    """The headers of an annotation whose most probable ``parent`` is known already: it takes longest to find."""
    best, score = annotation.best_class, annotation.anomaly_score
    headers: tuple[tuple[str, str], ...] = (
        ("survey", annotation.survey),
        ("objectId", annotation.object_id),
        ("class", best),
        ("probability", str(annotation.probabilities[annotation.class_names.index(best)])),
        ("ra", str(annotation.ra)),
        ("dec", str(annotation.dec)),
        ("detections", str(annotation.detections)),
        (KNOWN, "true" if annotation.known_as else "false"),
    )
    if parent is not None:
        headers += (("parent", parent), ("parentProbability", str(annotation.parents[parent])))
    if score is not None:
        headers += (("anomalyScore", str(score)),)
    return headers
