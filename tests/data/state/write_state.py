"""Writes what a release of Trifid keeps in Redis, as a fixture: run it with that release's code, not with the present.

    git worktree add /tmp/release <commit>
    PYTHONPATH=/tmp/release python tests/data/state/write_state.py tests/data/state/<commit>.json

Objects and a spectrum are made of simple numbers, so that ``test_compatibility.py`` can make them
again. The file holds every key of the store: strings and fields of hashes, in base64.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import redis

from broker.embedded.redis import RedisServer
from broker.records import Alert, LightCurve, ObservedSpectrum, SourceMetadata, Spectrum
from broker.state.redis import RedisStore

OBJECTS = 5


def curve(number: int) -> LightCurve:
    """Of object ``number``: two points and three more for each number, of all kinds, some without a reference."""
    n = 2 + 3 * number
    rows = np.arange(n, dtype=np.float64)
    kind = (np.arange(n) % 3).astype(np.uint8)
    flux = np.where(kind == 2, np.nan, 100.0 + rows + 10 * number).astype(np.float32)
    reference = np.where((kind == 2) | (np.arange(n) % 2 == 1), np.nan, 1000.0).astype(np.float32)
    return LightCurve(
        59000.0 + 1.25 * rows + number, flux, (1.0 + rows / 8).astype(np.float32), reference,
        (np.arange(n) % 2).astype(np.uint8), kind,
    )  # fmt: skip


def alert(number: int) -> Alert:
    """The latest alert of object ``number``, with its whole light curve."""
    light_curve = curve(number)
    values = np.full(34, np.nan, np.float32)
    values[:number] = 15.5 + np.arange(number)
    given: dict[str, Any] = {
        "survey": "ztf", "alert_id": 10**15 + number, "source_id": 10**15 + number, "object_id": f"ZTF18aaaaaa{number}",
        "ra": 10.0 + number, "dec": -20.0 + number, "mjd": float(light_curve.mjd[-1]), "band": "ztf:g",
        "light_curve": light_curve, "schema_version": "4.02", "metadata": SourceMetadata(values) if number else None,
        "real_bogus": 0.5, "star_score": None if number % 2 else 0.25,
    }  # fmt: skip
    known = {field.name for field in dataclasses.fields(Alert)}
    return Alert(**{name: value for name, value in given.items() if name in known})


def spectrum() -> ObservedSpectrum:
    """Under the name of object 1."""
    values = Spectrum(np.arange(4000.0, 4032.0, 2.0), *np.ones((2, 16), np.float32))
    return ObservedSpectrum("s:1", 11.0, -19.0, 59000.0, values, "ztf", alert(1).object_id)


def text(value: bytes) -> str:
    """As it stands in the file."""
    return base64.b64encode(value).decode()


def main() -> None:
    """Write the file that the first argument names."""
    with RedisServer() as server, redis.Redis.from_url(server.url) as client:
        store = RedisStore(server.url)
        for number in range(OBJECTS):
            store.update([alert(number)])
        store.put_observed([spectrum()])
        found: dict[str, Any] = {}
        for key in sorted(client.keys("*")):
            if client.type(key) == b"hash":
                found[key.decode()] = {name.decode(): text(value) for name, value in client.hgetall(key).items()}
            else:
                found[key.decode()] = text(client.get(key))
        store.close()
    Path(sys.argv[1]).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
