"""The model in this process, for what people upload, and for what each modality of an object says."""

from __future__ import annotations

import json
import math
import re
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path, PurePath
from typing import Any, Final

from broker.batch import IncomingMessage
from broker.build import local_pipeline
from broker.config import Settings
from broker.errors import InputFileError
from broker.lightcurves.columns import DEFAULT_BAND
from broker.offline import TABLE, classify_light_curves
from broker.pipeline import Pipeline, Received
from broker.publish.annotation import to_json, to_record
from broker.records import Alert, Annotation, LightCurve, ObjectState, ObservedSpectrum
from broker.spectra.files import read_raw
from broker.spectra.normalise import UnusableSpectrumError, summary, to_observed
from broker.times import mjd_now
from broker.web.objects import Known

MAX_OBJECTS: Final = 100
"""Objects of one uploaded file that are classified."""
_WAITING: Final = 4
_SUFFIX: Final = re.compile(r"(\.[A-Za-z0-9]{1,8}){1,2}$")


class BusyError(Exception):
    """Too many wait for the model already."""


class Model:
    """Loaded when it is first asked for; one request at a time, a few may wait."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._places = threading.BoundedSemaphore(_WAITING)
        self._pipeline: Pipeline | None = None

    @contextmanager
    def _loaded(self) -> Iterator[Pipeline]:
        if not self._places.acquire(blocking=False):
            raise BusyError
        try:
            with self._lock:
                self._pipeline = self._pipeline or local_pipeline(self._settings)
                yield self._pipeline
        finally:
            self._places.release()

    def by_modality(self, known: Known) -> dict[str, Any]:
        """Classes of an object by modality, and of all together, as records of annotation.avsc."""
        with self._loaded() as pipeline:
            found = pipeline.annotate_by_modality(Received(known.alert, IncomingMessage(b"", mjd_now())), known.state)
        return {modality: self._record(annotation) for modality, annotation in found.items()}

    def light_curves(self, name: str, content: bytes) -> dict[str, Any]:
        """Classify the objects of a table of light curves; raises InputFileError where it cannot be read."""
        remarks: list[str] = []
        with _file(name, content) as (path, said), self._loaded() as pipeline:
            annotations = classify_light_curves(pipeline, path, MAX_OBJECTS, lambda text: remarks.append(said(text)))
            found = list(islice(annotations, MAX_OBJECTS))
            if next(annotations, None) is not None:
                remarks.append(f"only the first {MAX_OBJECTS} objects of the table were classified")
        return {"annotations": [self._record(annotation) for annotation in found], "remarks": remarks}

    def spectra(self, name: str, content: bytes) -> dict[str, Any]:
        """Classify by spectra alone; raises InputFileError where there is none that can be used."""
        annotations, understood, remarks = [], [], []
        with _file(name, content) as (path, said), self._loaded() as pipeline:
            for number, raw in enumerate(islice(read_raw(path), MAX_OBJECTS)):
                try:
                    observed = to_observed(raw, placed=False)
                except UnusableSpectrumError as error:
                    remarks.append(said(f"{raw.spectrum_id}: {error}"))
                    continue
                alert, state = _of_spectrum(number, observed)
                received = Received(alert, IncomingMessage(b"", mjd_now()))
                annotations += [self._record(a) for a in pipeline.annotate_states([received], [state])]
                understood.append(_finite(summary(raw, observed)))
        if not annotations:
            raise InputFileError("; ".join(remarks))
        return {"annotations": annotations, "remarks": remarks, "spectra": understood}

    def _record(self, annotation: Annotation) -> dict[str, Any]:
        record: dict[str, Any] = json.loads(
            to_json(to_record(annotation, self._settings.publish.broker_name, mjd_now()))
        )
        return record


def _of_spectrum(number: int, observed: ObservedSpectrum) -> tuple[Alert, ObjectState]:
    """A spectrum as the only thing that is known of an object."""
    curve = LightCurve.empty()
    alert = Alert(
        TABLE, number, number, observed.spectrum_id, observed.ra, observed.dec, observed.mjd, DEFAULT_BAND, curve, ""
    )
    return alert, ObjectState(observed.spectrum_id, observed.ra, observed.dec, curve, spectrum=observed.spectrum)


@contextmanager
def _file(name: str, content: bytes) -> Iterator[tuple[Path, Any]]:
    """An upload as a file, and what makes of a message about it one that names it as the user does.

    Of the name only its ending is used: some formats are told by it.
    """
    shown = PurePath(name.replace("\\", "/")).name[:100] or "upload"
    suffix = _SUFFIX.search(shown)
    with tempfile.TemporaryDirectory(prefix="trifid-upload-") as folder:
        path = Path(folder) / f"upload{suffix[0] if suffix else ''}"

        def said(text: str) -> str:
            return text.replace(str(path), shown).replace(path.name, shown)

        path.write_bytes(content)
        try:
            yield path, said
        except InputFileError as error:
            raise InputFileError(said(str(error))) from None


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    return {n: None if isinstance(v, float) and not math.isfinite(v) else v for n, v in values.items()}
