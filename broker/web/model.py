"""The model in this process, for what people upload, and for what each modality of an object says.

After another version was promoted, the next request loads it; one that cannot be loaded leaves the one at hand in use.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from broker.batch import IncomingMessage, Received
from broker.build import local_pipeline
from broker.config import Settings
from broker.errors import TrifidError
from broker.lightcurves.columns import DEFAULT_BAND
from broker.offline import TABLE, classify_curves
from broker.pipeline import Pipeline
from broker.publish.annotation import to_json, to_record
from broker.records import Alert, Annotation, LightCurve, ObjectState, ObservedSpectrum
from broker.similar.query import state_of_curve, state_of_spectrum, vectors_of
from broker.times import mjd_now
from broker.web import upload
from broker.web.objects import Known
from broker.web.versions import Versions

log = logging.getLogger(__name__)

_WAITING: Final = 4
_WAIT_S: Final = 15.0
_PAUSE_S: Final = 60.0
"""Before a promoted version that cannot be loaded is tried again."""


class BusyError(Exception):
    """Too many wait for the model already."""


class Model:
    """Loaded when it is first asked for; one request at a time, a few may wait."""

    def __init__(self, settings: Settings, versions: Versions) -> None:
        self._settings, self._versions = settings, versions
        self._lock, self._reading = threading.Lock(), threading.Lock()
        self._places = threading.BoundedSemaphore(_WAITING)
        self._pipeline: Pipeline | None = None
        self._version = ""
        """Of ``_pipeline``."""
        self._failed, self._again = "", 0.0
        """The promoted version that could not be loaded, and when it is tried again, by the monotonic clock."""

    @contextmanager
    def _place(self) -> Iterator[None]:
        if not self._places.acquire(blocking=False):
            raise BusyError
        try:
            yield
        finally:
            self._places.release()

    @contextmanager
    def _loaded(self) -> Iterator[Pipeline]:
        with _turn(self._lock):
            yield self._of_served_version()

    def _of_served_version(self) -> Pipeline:
        """The pipeline of the served version, or of the one at hand while that cannot be loaded."""
        version = self._versions.served()
        if self._pipeline is not None:
            resting = version == self._failed and time.monotonic() < self._again
            if version == self._version or resting:
                return self._pipeline
        try:
            loaded = local_pipeline(self._settings, version=version)
        except TrifidError as error:
            if self._pipeline is None:
                raise
            log.error("%s was promoted and cannot be used, %s goes on: %s", version, self._version, error)
            self._failed, self._again = version, time.monotonic() + _PAUSE_S
            return self._pipeline
        if self._pipeline is not None:
            log.info("model version %s, before %s", version, self._version)
        self._pipeline, self._version = loaded, version
        return loaded

    def by_modality(self, known: Known) -> dict[str, Any]:
        """Classes of an object by modality, and of all together, as records of annotation.avsc."""
        with self._place(), self._loaded() as pipeline:
            found = pipeline.annotate_by_modality(Received(known.alert, IncomingMessage(b"", mjd_now())), known.state)
        return {modality: self._record(annotation) for modality, annotation in found.items()}

    def light_curves(self, name: str, content: bytes) -> dict[str, Any]:
        """Classify the objects of a table of light curves; raises InputFileError where it cannot be read."""
        with self._place():
            found = self._read("lightcurve", name, content)
            with self._loaded() as pipeline:
                annotations = [a for a, _ in classify_curves(pipeline, found.curves, upload.MAX_OBJECTS)]
        return {"annotations": [self._record(annotation) for annotation in annotations], "remarks": found.remarks}

    def spectra(self, name: str, content: bytes) -> dict[str, Any]:
        """Classify by spectra alone; raises InputFileError where there is none that can be used."""
        annotations = []
        with self._place():
            found = self._read("spectrum", name, content)
            with self._loaded() as pipeline:
                for number, (observed, _) in enumerate(found.spectra):
                    alert, state = _of_spectrum(number, observed)
                    received = Received(alert, IncomingMessage(b"", mjd_now()))
                    annotations += [self._record(a) for a in pipeline.annotate_states([received], [state])]
        return {"annotations": annotations, "remarks": found.remarks, "spectra": [about for _, about in found.spectra]}

    def vectors(self, kind: upload.Kind, name: str, content: bytes) -> dict[str, Any]:
        """Names and embeddings by kind of what a file holds, the version that made them, and remarks.

        Raises InputFileError where the file cannot be read.
        """
        with self._place():
            found = self._read(kind, name, content)
            curves = found.curves[: upload.MAX_OBJECTS]
            states = [state_of_curve(curve) for curve in curves] or [state_of_spectrum(s) for s, _ in found.spectra]
            with self._loaded() as pipeline:
                vectors, version = vectors_of(pipeline, states), self._version
        named = [(s.object_id, v) for s, v in zip(states, vectors, strict=True)]
        return {"vectors": named, "version": version, "remarks": found.remarks}

    def _read(self, kind: upload.Kind, name: str, content: bytes) -> upload.Upload:
        with _turn(self._reading):  # one at a time, so that the bound of memory is one of the server
            return upload.read(kind, name, content)

    def _record(self, annotation: Annotation) -> dict[str, Any]:
        record: dict[str, Any] = json.loads(
            to_json(to_record(annotation, self._settings.publish.broker_name, mjd_now()))
        )
        return record


@contextmanager
def _turn(lock: threading.Lock) -> Iterator[None]:
    if not lock.acquire(timeout=_WAIT_S):
        raise BusyError
    try:
        yield
    finally:
        lock.release()


def _of_spectrum(number: int, observed: ObservedSpectrum) -> tuple[Alert, ObjectState]:
    """A spectrum as the only thing that is known of an object."""
    curve = LightCurve.empty()
    alert = Alert(
        TABLE, number, number, observed.spectrum_id, observed.ra, observed.dec, observed.mjd, DEFAULT_BAND, curve, ""
    )
    return alert, ObjectState(observed.spectrum_id, observed.ra, observed.dec, curve, spectrum=observed.spectrum)
