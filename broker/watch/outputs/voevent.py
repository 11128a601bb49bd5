"""VOEvent 2.0 packets (https://www.ivoa.net/documents/VOEvent/20110711/), by ``POST`` to the list's URL.

The IVORN ends in the annotation's number, so that a packet that comes twice can be told.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Final, Literal
from xml.etree import ElementTree

from pydantic import Field

import broker
from broker.times import datetime_of
from broker.watch.outputs import receiver

NEEDS_TOKEN: Final = False
_NAMESPACE: Final = "http://www.ivoa.net/xml/VOEvent/v2.0"
_XSI: Final = "http://www.w3.org/2001/XMLSchema-instance"
_FRAME: Final = "UTC-ICRS-GEO"
_UCDS: Final = {"mjd": ("time.epoch", "d"), "period": ("time.period", "d"), "detections": ("meta.number", "")}


class Options(receiver.Options):
    """What a list says of its packets."""

    authority: str = Field("trifid", pattern=r"^[A-Za-z0-9][A-Za-z0-9.\-_]{0,99}$")
    """Of IVORNs, such as ``org.example``."""
    role: Literal["observation", "test"] = "observation"
    error_radius: float = Field(1.0, gt=0.0, le=3600.0)
    """Arcsec, of the position, which surveys do not tell."""


def packet(told: receiver.Told, options: Options, now: datetime) -> bytes:
    """UTF-8 XML; ``now`` is when it is written."""
    one = told.annotation
    ElementTree.register_namespace("voe", _NAMESPACE)
    root = ElementTree.Element(
        f"{{{_NAMESPACE}}}VOEvent",
        {
            "version": "2.0", "role": options.role, "ivorn": f"ivo://{options.authority}/trifid#{told.event}",
            f"{{{_XSI}}}schemaLocation": f"{_NAMESPACE} http://www.ivoa.net/xml/VOEvent/VOEvent-v2.0.xsd",
        },
    )  # fmt: skip
    who = ElementTree.SubElement(root, "Who")
    _text(who, "AuthorIVORN", f"ivo://{options.authority}/trifid")
    _text(who, "Date", _time(now))
    author = ElementTree.SubElement(who, "Author")
    _text(author, "title", f"Trifid {broker.__version__}")
    what = ElementTree.SubElement(root, "What")
    for name, value in ({"objectId": one.object_id} | told.values()).items():
        _param(what, name, value)
    group = ElementTree.SubElement(what, "Group", {"name": "probabilities", "type": "classification"})
    for name, value in told.probabilities().items():
        _param(group, name, value, "stat.probability")
    if told.link:
        ElementTree.SubElement(what, "Reference", {"uri": told.link, "meaning": "the object's page"})
    if math.isfinite(one.ra) and math.isfinite(one.dec):
        _where(root, one.ra % 360.0, one.dec, one.mjd, options.error_radius, one.survey)
    why = ElementTree.SubElement(root, "Why")
    inference = ElementTree.SubElement(
        why, "Inference", {"probability": f"{one.best_probability:.6f}", "relation": "identified"}
    )
    _text(inference, "Name", one.object_id)
    _text(inference, "Concept", one.best_class)
    _text(inference, "Description", told.sentence())
    data: bytes = ElementTree.tostring(root, encoding="UTF-8", xml_declaration=True)
    return data


def _where(root: ElementTree.Element, ra: float, dec: float, mjd: float, radius: float, survey: str) -> None:
    place = ElementTree.SubElement(ElementTree.SubElement(root, "WhereWhen"), "ObsDataLocation")
    ElementTree.SubElement(place, "ObservatoryLocation", {"id": survey})
    seen = ElementTree.SubElement(place, "ObservationLocation")
    ElementTree.SubElement(seen, "AstroCoordSystem", {"id": _FRAME})
    coordinates = ElementTree.SubElement(seen, "AstroCoords", {"coord_system_id": _FRAME})
    moment = ElementTree.SubElement(coordinates, "Time", {"unit": "s"})
    _text(ElementTree.SubElement(moment, "TimeInstant"), "ISOTime", _time(datetime_of(mjd)))
    position = ElementTree.SubElement(coordinates, "Position2D", {"unit": "deg"})
    _text(position, "Name1", "RA")
    _text(position, "Name2", "Dec")
    value = ElementTree.SubElement(position, "Value2")
    _text(value, "C1", f"{ra:.7f}")
    _text(value, "C2", f"{dec:.7f}")
    _text(position, "Error2Radius", f"{radius / 3600.0:.7f}")


def _param(parent: ElementTree.Element, name: str, value: float | int | str, ucd: str = "") -> None:
    kind = "string" if isinstance(value, str) else "int" if isinstance(value, int) else "float"
    meaning, unit = _UCDS.get(name, (ucd, ""))
    given = {"name": name, "value": _xml(str(value)), "dataType": kind, "ucd": meaning, "unit": unit}
    ElementTree.SubElement(parent, "Param", {key: text for key, text in given.items() if text})


def _text(parent: ElementTree.Element, tag: str, text: str) -> None:
    ElementTree.SubElement(parent, tag).text = _xml(text)


def _xml(text: str) -> str:
    """Without characters that XML cannot have, whatever a survey calls an object."""
    return "".join(
        c for c in text if c in "\t\n\r" or " " <= c <= "\ud7ff" or "\ue000" <= c <= "\ufffd" or c > "\uffff"
    )


def _time(moment: datetime) -> str:
    """As ISO 8601 without a zone, which VOEvent's times do not have: they are UTC."""
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="milliseconds")


def send(told: receiver.Told, options: Options, service: receiver.Receiver) -> None:
    """Raises OutputError."""
    authorization = f"Bearer {service.token}" if service.token else None
    service.call("POST", "", packet(told, options, datetime.now(UTC)), "application/xml", authorization)
