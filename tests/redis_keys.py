"""Where a test finds what the store keeps, whichever cell of the sky it is in."""

from __future__ import annotations

from typing import Any

from broker.state.keys import NO_HOME, base, object_key, sky_key
from broker.state.places import own_cells, own_homes


def key_at(alert: Any, kind: str = "lc", prefix: str = "trifid") -> str:
    """The key of an object whose home is where an alert is."""
    return object_key(prefix, own_homes([alert])[0], (alert.survey, alert.object_id), kind)


def old_key(survey: str, object_id: str, kind: str = "lc", prefix: str = "trifid") -> str:
    """The key of an object as releases of before state was kept by cell wrote it."""
    return object_key(prefix, NO_HOME, (survey, object_id), kind)


def key_of(client: Any, object_id: str, kind: str = "lc", survey: str = "ztf") -> str:
    """The one key of an object that there is."""
    (key,) = client.keys(f"trifid:{{*}}:{survey}:{object_id}:{kind}")
    return str(key.decode())


def places(client: Any) -> list[bytes]:
    """The objects that have a place."""
    return sorted(name for key in client.keys("trifid:{*}:sky:objects:*") for name in client.hkeys(key))


def spectrum_key(spectrum: Any, prefix: str = "trifid") -> str:
    """The key of a spectrum that was stored by its position."""
    return f"{base(prefix, own_homes([spectrum])[0])}:spectrum:{spectrum.spectrum_id}"


def old_spectrum(client: Any, spectrum: Any, value: bytes, place: bytes, prefix: str = "trifid") -> None:
    """Store a spectrum as releases did that did not say where it is."""
    client.set(f"{prefix}:spectrum:{spectrum.spectrum_id}", value)
    client.hset(sky_key(prefix, NO_HOME, "spectra", own_cells([spectrum])[0]), spectrum.spectrum_id, place)
