"""Trifid: a survey alert broker that classifies light curves, spectra and metadata.

What a program of yours may use, each loaded when it is first asked for:

- ``Subscription``: reads annotations from Kafka as they are published, each a ``PublishedAnnotation``.
- ``local_pipeline``, ``classify_light_curves``, ``classify_packets``: classification in this process, without servers.
- ``Alert``, ``Annotation``, ``LightCurve``, ``Spectrum``, ``ObservedSpectrum``, ``KnownObject``, ``Neighbour``: the
  records, with the units of their fields.

>>> import tempfile, pathlib
>>> from broker import classify_light_curves, local_pipeline
>>> table = pathlib.Path(tempfile.mkdtemp(), "stars.csv")
>>> _ = table.write_text('''name,ra,dec,mjd,mag,magerr,band
... star,10.5,-3.2,59000.1,14.0,0.02,ztf:r
... star,10.5,-3.2,59003.2,14.3,0.02,ztf:r
... ''')
>>> for annotation in classify_light_curves(local_pipeline(), table, batch_size=256):
...     print(annotation.object_id, annotation.best_class, annotation.detections)
star NotClassified 2
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from broker.build import local_pipeline
    from broker.client.subscription import Subscription
    from broker.offline import classify_light_curves, classify_packets
    from broker.publish.annotation import PublishedAnnotation
    from broker.records import Alert, Annotation, KnownObject, LightCurve, Neighbour, ObservedSpectrum, Spectrum

__version__ = "0.1.0"

__all__ = [
    "Alert",
    "Annotation",
    "KnownObject",
    "LightCurve",
    "Neighbour",
    "ObservedSpectrum",
    "PublishedAnnotation",
    "Spectrum",
    "Subscription",
    "classify_light_curves",
    "classify_packets",
    "local_pipeline",
]

_RECORDS = ("Alert", "Annotation", "KnownObject", "LightCurve", "Neighbour", "ObservedSpectrum", "Spectrum")
_MODULE = {
    **dict.fromkeys(_RECORDS, "broker.records"),
    "PublishedAnnotation": "broker.publish.annotation",
    "Subscription": "broker.client.subscription",
    "classify_light_curves": "broker.offline",
    "classify_packets": "broker.offline",
    "local_pipeline": "broker.build",
}


def __getattr__(name: str) -> object:
    """Load what is asked for: the whole would take seconds, for the model's libraries."""
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULE[name]), name)
