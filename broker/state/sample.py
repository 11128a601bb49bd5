"""Objects of the state as Redis has their keys, in the order of a hash: any first part of them is a sample."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Final

import numpy as np

from broker.records import Alert, PhotometryKind
from broker.redis_client import RedisConnection
from broker.state.encoding import StateError, decode_object
from broker.state.keys import split_object_key

_TOGETHER: Final = 256


def latest_alerts(connection: RedisConnection, prefix: str = "trifid") -> Iterator[tuple[Alert, int]]:
    """The latest alert of each object, without its light curve, and how many detections are remembered of it.

    What cannot be read is passed over. An object that moved home meanwhile may come twice.
    """
    found = connection.scan(f"{prefix}:*:lc")
    while texts := [key.decode() for key in islice(found, _TOGETHER)]:
        for text, value in zip(texts, connection.get_many(texts), strict=True):
            if value is None:
                continue
            try:
                curve, alert = decode_object(value, *split_object_key(prefix, text)[1])
            except StateError:
                continue
            yield alert, int(np.sum(curve.kind == PhotometryKind.DETECTION))
