"""Notices in the core schema of NASA's GCN (https://github.com/nasa-gcn/gcn-schema), as JSON by ``POST``.

Fields are those of the core's Alert, DateTime, Event, Reporter, Localization, Statistics and AdditionalInfo. ``id`` is
the annotation's number, by which a notice that comes twice can be told. What is published on GCN's own Kafka needs an
agreement with GCN; this is the notice for it, or for whoever reads such notices.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any, Final, Literal

from pydantic import Field

from broker.taxonomy import NOT_CLASSIFIED
from broker.times import datetime_of
from broker.watch.outputs import receiver

NEEDS_TOKEN: Final = False


class Options(receiver.Options):
    """What a list says of its notices."""

    mission: str = Field("Trifid", min_length=1, max_length=100)
    tense: Literal["current", "test"] = "current"
    error_radius: float = Field(1.0, gt=0.0, le=3600.0)
    """Arcsec, of the position, which surveys do not tell."""


def notice(told: receiver.Told, options: Options, now: datetime) -> dict[str, Any]:
    """``now`` is when it is written."""
    one = told.annotation
    found: dict[str, Any] = {
        "alert_datetime": _time(now),
        "alert_tense": options.tense,
        "alert_type": "initial",
        "trigger_time": _time(datetime_of(one.mjd)),
        "event_name": one.object_id,
        "id": [told.event, str(one.alert_id)],
        "mission": options.mission,
        "instrument": one.survey,
        "messenger": "EM",
        "additional_info": told.sentence(),
    }
    if told.link:
        found["data_archive_page"] = told.link
    if math.isfinite(one.ra) and math.isfinite(one.dec):
        found |= {"ra": one.ra % 360.0, "dec": one.dec, "ra_dec_error": options.error_radius / 3600.0}
    if one.best_class != NOT_CLASSIFIED.name:
        found["classification"] = _exclusive(told)
    return found


def _exclusive(told: receiver.Told) -> dict[str, float]:
    """Probabilities that sum to 1, of mutually exclusive classes."""
    one = told.annotation
    total = math.fsum(one.probabilities) or 1.0
    return {name: float(value) / total for name, value in zip(one.class_names, one.probabilities, strict=True)}


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def send(told: receiver.Told, options: Options, service: receiver.Receiver) -> None:
    """Raises OutputError."""
    authorization = f"Bearer {service.token}" if service.token else None
    value = notice(told, options, datetime.now(UTC))
    service.post_json("", value, authorization)
