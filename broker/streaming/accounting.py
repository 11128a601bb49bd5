"""Alert accounting: alerts in = classified + not classified + dead-lettered, spectra in = stored + dead-lettered."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field, fields

from broker.batch import SPECTRA as SPECTRA_SURVEY
from broker.batch import BatchResult
from broker.metrics import (
    ALERTS_IN,
    ALERTS_OUT,
    ANOMALY_SCORE,
    ANOMALY_UNSCORED,
    CLASSIFIED,
    HISTORY,
    KNOWN_OBJECTS,
    POINTS_LEFT_OUT,
    RECLASSIFIED,
    SPECTRA,
)


@dataclass(slots=True)
class Accounting:
    """Counts of what was delivered for good; a batch that is tried again is counted once."""

    messages: int = 0
    payload_bytes: int = 0
    alerts_in: int = 0
    """As the decoder counted them."""
    classified: int = 0
    not_classified: int = 0
    dead_lettered: int = 0
    spectra_in: int = 0
    spectra_stored: int = 0
    spectra_dead_lettered: int = 0
    reclassified: int = 0
    """Objects classified again upon a spectrum, which are no alerts in."""
    classes: Counter[str] = field(default_factory=Counter)
    """Alerts by most probable class, Other and NotClassified included."""
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)
    """Held while a batch is entered: whoever ends the process reads whole batches."""

    def add(self, result: BatchResult, messages: int, payload_bytes: int) -> None:
        """Enter a delivered batch here and in the metrics."""
        with self.lock:
            self._add(result, messages, payload_bytes)

    def _add(self, result: BatchResult, messages: int, payload_bytes: int) -> None:
        self.messages += messages
        self.payload_bytes += payload_bytes
        for survey, count in result.alerts_in.items():
            self.alerts_in += count
            ALERTS_IN.labels(survey).inc(count)
        for (survey, reason), points in result.points_left_out.items():
            POINTS_LEFT_OUT.labels(survey, reason).inc(points)
        self.spectra_in += result.spectra_in
        self.spectra_stored += result.spectra_stored
        SPECTRA.labels("stored").inc(result.spectra_stored)
        for annotation in result.annotations:
            if annotation.trigger == "spectrum":
                self.reclassified += 1
                RECLASSIFIED.labels(annotation.survey).inc()
                continue
            if annotation.history:
                HISTORY.labels(annotation.survey, annotation.history).inc()
            for known in annotation.known_as:
                KNOWN_OBJECTS.labels(known.catalogue, known.disagrees or "no").inc()
            best = annotation.best_class
            self.classes[best] += 1
            if annotation.classified:
                self.classified += 1
                CLASSIFIED.labels(best).inc()
            else:
                self.not_classified += 1
            ALERTS_OUT.labels(annotation.survey, "classified" if annotation.classified else "not_classified").inc()
            if annotation.anomaly_score is not None:
                ANOMALY_SCORE.observe(annotation.anomaly_score)
            elif annotation.anomaly_reason is not None:
                ANOMALY_UNSCORED.inc()
        for letter in result.dead_letters:
            if letter.survey == SPECTRA_SURVEY:
                self.spectra_dead_lettered += 1
                SPECTRA.labels("dead_lettered").inc()
                continue
            self.dead_lettered += 1
            ALERTS_OUT.labels(letter.survey, "dead_lettered").inc()

    @property
    def reconciled(self) -> bool:
        """Whether every alert and every spectrum that came in is accounted for."""
        return (
            self.alerts_in == self.classified + self.not_classified + self.dead_lettered
            and self.spectra_in == self.spectra_stored + self.spectra_dead_lettered
        )

    def counts(self) -> dict[str, int]:
        """All counts by name, as structured logs have them."""
        with self.lock:
            return {one.name: value for one in fields(self) if type(value := getattr(self, one.name)) is int}

    def __str__(self) -> str:
        with self.lock:
            return self._text()

    def _text(self) -> str:
        spectra = (
            f"; spectra in {self.spectra_in} = stored {self.spectra_stored} + dead-lettered "
            f"{self.spectra_dead_lettered}, upon which {self.reclassified} objects were classified again"
        )
        return (
            f"alerts in {self.alerts_in} = classified {self.classified} "
            f"+ not classified {self.not_classified} + dead-lettered {self.dead_lettered}"
            + (spectra if self.spectra_in else "")
            + ": "
            + ("reconciled" if self.reconciled else "NOT RECONCILED")
        )
