"""Classification of files in this process: the service's pipeline, without Kafka, Redis or Triton."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from broker.batch import BatchResult, IncomingMessage, Origin, Received
from broker.catalog.memory import MemoryCatalogs
from broker.dead_letters import describe, isolate
from broker.lightcurves.columns import DEFAULT_BAND
from broker.lightcurves.files import read_light_curves
from broker.lightcurves.objects import NamedLightCurve
from broker.pipeline import Pipeline
from broker.publish.annotate import not_classified
from broker.records import BANDS, Alert, Annotation, LightCurve, ObjectState, ObservedSpectrum, Spectrum, TimeSystem
from broker.sources import Remark, in_batches, iter_packets
from broker.spectra.places import Spectra
from broker.times import mjd_now

T = TypeVar("T")
_Result = tuple[Annotation, NDArray[np.float32] | None]

TABLE: Final = "table"
"""Published as the survey of objects that come from a table of light curves."""


def classify_packets(
    pipeline: Pipeline, paths: Sequence[Path], batch_size: int, report: Callable[[Remark], None] | None = None
) -> Iterator[BatchResult]:
    """Classify alert packets in files; the origin of a dead letter names the file.

    What cannot be read of a file goes to ``report``, or raises InputFileError without it (see ``iter_packets``).
    """
    first = 0
    for batch in in_batches(iter_packets(paths, report), batch_size):
        now = mjd_now()
        yield from pipeline.batches(
            [IncomingMessage(p.payload, now, Origin(p.name, 0, number, 0)) for number, p in enumerate(batch, first)]
        )
        first += len(batch)


def classify_light_curves(
    pipeline: Pipeline,
    path: Path,
    batch_size: int,
    say: Callable[[str], None] = lambda _: None,
    time_system: TimeSystem | None = None,
    catalogs: MemoryCatalogs | None = None,
    columns: Mapping[str, str] | None = None,
    spectra: Spectra | None = None,
    band: str | None = None,
) -> Iterator[Annotation]:
    """Classify each object of a table (see ``read_light_curves``); the object id is its name.

    Each name gives one annotation: NotClassified, with the reason, where it cannot be used. ``say`` is called with
    what the user should know of the table. ``time_system`` is what its times are, where not what their column is called
    after; ``catalogs`` and ``spectra`` are as for ``classify_curves``; ``columns`` and ``band`` are as for
    ``read_light_curves``. Raises InputFileError where the table cannot be read.
    """
    curves = read_light_curves(path, say, time_system, columns, band)
    for annotation, _ in classify_curves(pipeline, curves, batch_size, catalogs, spectra):
        yield annotation


def classify_curves(
    pipeline: Pipeline,
    curves: Iterable[NamedLightCurve],
    batch_size: int,
    catalogs: MemoryCatalogs | None = None,
    spectra: Spectra | None = None,
) -> Iterator[_Result]:
    """Classify each light curve; its embedding (width,) comes with it, None where there was nothing to embed.

    ``spectra`` are used of the stars whose names they have, or at whose places they are; ``catalogs`` tell known
    variable stars, and give the values of the source at the place.
    """
    objects = ((curve, _alert(number, curve), _spectrum(spectra, curve)) for number, curve in enumerate(curves))
    return _classified(pipeline, objects, batch_size, catalogs)


def classify_spectra(
    pipeline: Pipeline, spectra: Iterable[ObservedSpectrum], batch_size: int, catalogs: MemoryCatalogs | None = None
) -> Iterator[Annotation]:
    """Classify each spectrum by itself, and with the values of the source at its place; the object id is its id."""
    objects = []
    for number, one in enumerate(spectra):
        curve = NamedLightCurve(one.spectrum_id, one.ra, one.dec, LightCurve.empty(), None)
        objects.append((curve, replace(_alert(number, curve), mjd=one.mjd), one.spectrum))
    for annotation, _ in _classified(pipeline, objects, batch_size, catalogs):
        yield annotation


def _classified(
    pipeline: Pipeline,
    objects: Iterable[tuple[NamedLightCurve, Alert, Spectrum | None]],
    batch_size: int,
    catalogs: MemoryCatalogs | None,
) -> Iterator[_Result]:
    for batch in batched(objects, batch_size):
        message = IncomingMessage(b"", mjd_now())
        received = [Received(alert, message) for _, alert, _ in batch]
        found = (catalogs or MemoryCatalogs()).of_alerts([r.alert for r in received])
        items = [
            (
                one,
                ObjectState(
                    curve.name,
                    curve.ra,
                    curve.dec,
                    curve.light_curve,
                    spectrum=spectrum,
                    metadata=there.metadata,
                    time_system=curve.time_system,
                    known_as=there.known_as,
                ),
            )
            for one, (curve, _, spectrum), there in zip(received, batch, found, strict=True)
        ]
        results = isolate(items, lambda items: _annotate(pipeline, items), _failed)
        for (annotation, embedding), (curve, _, _) in zip(results, batch, strict=True):
            if not annotation.classified and curve.problem is not None:
                annotation = replace(annotation, reason=f"{annotation.reason} ({curve.problem})")
            yield annotation, embedding


def _spectrum(spectra: Spectra | None, curve: NamedLightCurve) -> Spectrum | None:
    found = None if spectra is None else spectra.of(curve.name, curve.ra, curve.dec)
    return None if found is None else found.spectrum


def _annotate(pipeline: Pipeline, items: Sequence[tuple[Received, ObjectState]]) -> list[_Result]:
    found = pipeline.annotate_and_embed([received for received, _ in items], [state for _, state in items])
    return [(annotation, embedding if embedding.any() else None) for annotation, embedding in found]


def _failed(item: tuple[Received, ObjectState], error: Exception) -> list[_Result]:
    received, state = item
    return [(not_classified(received.alert, state, received.message.received_mjd, describe(error)), None)]


def _alert(number: int, curve: NamedLightCurve) -> Alert:
    """The last point of a light curve as if it had just been observed."""
    light_curve = curve.light_curve
    return Alert(
        survey=TABLE,
        alert_id=number,
        source_id=number,
        object_id=curve.name,
        ra=curve.ra,
        dec=curve.dec,
        mjd=float(light_curve.mjd[-1]) if len(light_curve) else float("nan"),
        band=BANDS[light_curve.band[-1]] if len(light_curve) else DEFAULT_BAND,
        light_curve=light_curve,
        schema_version="",
        unknown_bands=curve.unknown_bands,
    )


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of ``size`` items, the last of fewer (``itertools.batched`` of Python 3.12)."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
