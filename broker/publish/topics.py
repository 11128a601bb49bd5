"""Which topics there are, and which of them an annotation goes to."""

from __future__ import annotations

from dataclasses import dataclass

from broker.records import Annotation
from broker.surveys import SURVEYS
from broker.topic_names import KINDS, dead_letter_topic, elasticc_topic, topic_of


@dataclass(frozen=True, slots=True)
class OutputTopics:
    """Output topics: ``<prefix>.<survey>.all``, ``.<class>``, ``.<parent>``, ``.other``, ``.notclassified``,
    ``.anomaly``, and ``<prefix>.deadletter``; where asked for ``<prefix>.brokerclassification``, too."""

    prefix: str
    anomaly_threshold: float
    """Anomaly score from which an annotation goes to the anomaly topic, too."""
    surveys: tuple[str, ...] = SURVEYS
    """Whose alerts are annotated."""
    elasticc_surveys: tuple[str, ...] = ()
    """Whose annotations go to ``elasticc``, too."""

    @property
    def dead_letter(self) -> str:
        """The topic of what could not be handled."""
        return dead_letter_topic(self.prefix)

    @property
    def elasticc(self) -> str:
        """The topic of classifications in ELAsTiCC's schema."""
        return elasticc_topic(self.prefix)

    def of(self, annotation: Annotation) -> list[str]:
        """Topics of one annotation: all, its most probable class and parent, anomaly where its score reaches it.

        The parent of the most probable class may be another than the most probable parent: ROT 0.3 leads, but EA, EB
        and EW together have 0.7. What is Other or NotClassified has no parent.
        """
        names = ["all", annotation.best_class]
        if (parent := annotation.parent) is not None:
            names.append(parent)
        if annotation.anomaly_score is not None and annotation.anomaly_score >= self.anomaly_threshold:
            names.append("anomaly")
        return [topic_of(self.prefix, annotation.survey, name) for name in names]

    def every(self) -> list[str]:
        """All topics that annotations and dead letters can go to, the last of them that of dead letters."""
        names = [topic_of(self.prefix, survey, kind) for survey in self.surveys for kind in KINDS]
        return [*names, *([self.elasticc] if self.elasticc_surveys else []), self.dead_letter]

    def all_alerts(self) -> list[str]:
        """The topics that have every annotation of a survey."""
        return [topic_of(self.prefix, survey, "all") for survey in self.surveys]
