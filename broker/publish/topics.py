"""Which topics there are, and which of them an annotation goes to."""

from __future__ import annotations

from dataclasses import dataclass

from broker.records import Annotation
from broker.surveys import SURVEYS
from broker.taxonomy import CLASS_NAMES, NOT_CLASSIFIED


@dataclass(frozen=True, slots=True)
class Topics:
    """Output topics: ``<prefix>.<survey>.all``, ``.<class>``, ``.anomaly``, and ``<prefix>.deadletter``."""

    prefix: str
    anomaly_threshold: float
    """Anomaly score from which an annotation goes to the anomaly topic, too."""
    surveys: tuple[str, ...] = SURVEYS
    """Whose alerts are annotated."""

    @property
    def dead_letter(self) -> str:
        """The topic of what could not be handled."""
        return f"{self.prefix}.deadletter"

    def of(self, annotation: Annotation) -> list[str]:
        """Topics of one annotation: all, its most probable class, and anomaly where its score reaches it."""
        names = ["all", annotation.best_class]
        if annotation.anomaly_score is not None and annotation.anomaly_score >= self.anomaly_threshold:
            names.append("anomaly")
        return [self._name(annotation.survey, name) for name in names]

    def every(self) -> list[str]:
        """All topics that annotations and dead letters can go to."""
        kinds = ("all", *CLASS_NAMES, NOT_CLASSIFIED.name, "anomaly")
        return [self._name(survey, kind) for survey in self.surveys for kind in kinds] + [self.dead_letter]

    def all_alerts(self) -> list[str]:
        """The topics that have every annotation of a survey."""
        return [self._name(survey, "all") for survey in self.surveys]

    def _name(self, survey: str, kind: str) -> str:
        return f"{self.prefix}.{survey}.{kind.lower()}"
