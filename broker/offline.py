"""Classification of files in this process: the service's pipeline above all rooms, without Kafka, Redis or Triton."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Final, TypeVar

from broker.batch import BatchResult, IncomingMessage, Origin
from broker.catalog.memory import MemoryCatalogs
from broker.dead_letters import describe, isolate
from broker.lightcurves.columns import DEFAULT_BAND
from broker.lightcurves.files import read_light_curves
from broker.lightcurves.objects import NamedLightCurve
from broker.pipeline import Pipeline, Received
from broker.publish.annotate import not_classified
from broker.records import BANDS, Alert, Annotation, ObjectState, TimeSystem
from broker.sources import Remark, iter_packets
from broker.times import mjd_now

T = TypeVar("T")

TABLE: Final = "table"
"""Published as the survey of objects that come from a table of light curves."""


def classify_packets(
    pipeline: Pipeline, paths: Sequence[Path], batch_size: int, report: Callable[[Remark], None] | None = None
) -> Iterator[BatchResult]:
    """Classify alert packets in files; the origin of a dead letter names the file.

    What cannot be read of a file goes to ``report``, or raises InputFileError without it (see ``iter_packets``).
    """
    for batch in _batched(enumerate(iter_packets(paths, report)), batch_size):
        now = mjd_now()
        yield from pipeline.batches(
            [IncomingMessage(packet.payload, now, Origin(packet.name, 0, number, 0)) for number, packet in batch]
        )


def classify_light_curves(
    pipeline: Pipeline,
    path: Path,
    batch_size: int,
    say: Callable[[str], None] = lambda _: None,
    time_system: TimeSystem | None = None,
    catalogs: MemoryCatalogs | None = None,
) -> Iterator[Annotation]:
    """Classify each object of a table (see ``read_light_curves``); the object id is its name.

    Each name gives one annotation: NotClassified, with the reason, where it cannot be used. ``say`` is called with
    what the user should know of the table. ``time_system`` is what its times are, where not what their column is called
    after; ``catalogs`` are of known variable stars. Raises InputFileError where the table cannot be read.
    """
    number = 0
    for batch in _batched(read_light_curves(path, say, time_system), batch_size):
        message = IncomingMessage(b"", mjd_now())
        received = [Received(_alert(number + offset, curve), message) for offset, curve in enumerate(batch)]
        found = (catalogs or MemoryCatalogs()).of_alerts([r.alert for r in received])
        items = [
            (
                one,
                ObjectState(
                    curve.name,
                    curve.ra,
                    curve.dec,
                    curve.light_curve,
                    time_system=curve.time_system,
                    known_as=there.known_as,
                ),
            )
            for one, curve, there in zip(received, batch, found, strict=True)
        ]
        number += len(batch)
        annotations = isolate(
            items,
            lambda items: pipeline.annotate_states([r for r, _ in items], [s for _, s in items]),
            lambda item, error: [not_classified(item[0].alert, item[1], item[0].message.received_mjd, describe(error))],
        )
        for annotation, curve in zip(annotations, batch, strict=True):
            if not annotation.classified and curve.problem is not None:
                yield replace(annotation, reason=f"{annotation.reason} ({curve.problem})")
            else:
                yield annotation


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


def _batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
