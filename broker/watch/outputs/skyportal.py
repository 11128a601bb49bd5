"""Sources, annotations and classifications in SkyPortal (https://skyportal.io/docs/api.html), over its HTTP API.

The list's URL is the instance's, such as ``https://fritz.science``. An object is saved as a source of the groups; one
annotation of Trifid is kept up to date on it; and, where the list says by which taxonomy, one classification. SkyPortal
would keep a second classification and refuse a second annotation: so what is there is looked up and changed.
"""

from __future__ import annotations

import math
import re
from typing import Any, Final
from urllib.parse import quote

from pydantic import Field

from broker.taxonomy import CLASS_NAMES
from broker.watch.outputs import receiver

NEEDS_TOKEN: Final = True
TDTAX: Final = {
    "EW": "W Ursae Maj", "SR": "Semiregular", "EA": "Algol", "RRAB": "RRab", "EB": "Beta Lyrae", "ROT": "Rotating",
    "RRC": "RRc", "HADS": "High-Amp", "M": "Mira", "DSCT": "Delta Scuti",
}  # fmt: skip
"""Our classes in SkyPortal's default taxonomy (https://github.com/profjsb/timedomain-taxonomy)."""
_NAME: Final = re.compile(r"[0-9A-Za-z\-_.+]+")
"""Of a source: what its routes take."""


class Options(receiver.Options):
    """What a list says of a SkyPortal."""

    group_ids: list[int] = Field(min_length=1, max_length=100)
    """Who sees what is saved."""
    taxonomy_id: int | None = None
    """Of classifications; none are made without it."""
    classes: dict[str, str] = Field(default_factory=dict, max_length=len(CLASS_NAMES) + 2)
    """Our classes as the taxonomy has them, where it is not the default one (``TDTAX``)."""
    origin: str = Field("Trifid", pattern=r"^\w[\w .-]{0,99}$")
    """By which SkyPortal tells our annotation from others."""


def send(told: receiver.Told, options: Options, service: receiver.Receiver) -> None:
    """Raises OutputError."""
    one = told.annotation
    if not _NAME.fullmatch(one.object_id):
        raise receiver.OutputError(f"SkyPortal takes no source of the name {one.object_id[:60]!r}")
    if not (math.isfinite(one.ra) and math.isfinite(one.dec)):
        raise receiver.OutputError("SkyPortal takes no source without a position")
    own, groups = quote(one.object_id, safe="+"), {"group_ids": options.group_ids}
    _ask(service, "POST", "/api/sources", {"id": one.object_id, "ra": one.ra % 360.0, "dec": one.dec} | groups)
    data: dict[str, Any] = told.values() | {f"p_{name}": value for name, value in told.probabilities().items()}
    data |= {"class": one.best_class} | ({"url": told.link} if told.link else {})
    held = _own(_ask(service, "GET", f"/api/sources/{own}/annotations"), options.origin)
    _keep(service, f"/api/sources/{own}/annotations", held, {"origin": options.origin, "data": data} | groups)
    name = (TDTAX | options.classes).get(one.best_class)
    if options.taxonomy_id is None or name is None:
        return
    held = _own(_ask(service, "GET", f"/api/sources/{own}/classifications"), options.origin)
    values = {
        "obj_id": one.object_id, "classification": name, "taxonomy_id": options.taxonomy_id, "origin": options.origin,
        "probability": min(max(float(one.best_probability), 0.0), 1.0), "ml": True,
    }  # fmt: skip
    _keep(service, "/api/classifications", held, values | groups, {"vote": False, "label": False})


def _keep(
    service: receiver.Receiver, path: str, held: int | None, values: dict[str, Any], new: dict[str, Any] | None = None
) -> None:
    """Make something, with what is said of ``new`` things only, or change the one that is there."""
    if held is None:
        _ask(service, "POST", path, values | (new or {}))
    else:
        _ask(service, "PUT", f"{path}/{held}", values)


def _own(found: Any, origin: str) -> int | None:
    """The number of ours among what is there."""
    if not isinstance(found, list):
        raise receiver.OutputError("SkyPortal answers in a way that is not known")
    own = (one for one in found if isinstance(one, dict) and one.get("origin") == origin)
    return next((int(one["id"]) for one in own if isinstance(one.get("id"), int)), None)


def _ask(service: receiver.Receiver, method: str, path: str, value: Any = None) -> Any:
    """``data`` of SkyPortal's answer."""
    answer = service.json(method, path, value, f"token {service.token}")
    if not isinstance(answer, dict) or answer.get("status") != "success":
        said = str(answer.get("message", ""))[:200] if isinstance(answer, dict) else ""
        raise receiver.OutputError(f"SkyPortal, {method} {path}: {said.replace(service.token or chr(0), '***')}")
    return answer.get("data")
