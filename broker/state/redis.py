"""The store in Redis: one value an object and kind, read and written a batch at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeVar, cast

import redis

from broker.errors import DependencyUnavailableError
from broker.records import Alert, ObjectState, SourceMetadata, Spectrum
from broker.state.encoding import (
    StateError,
    decode_light_curve,
    decode_metadata,
    decode_spectrum,
    encode_light_curve,
    encode_metadata,
    encode_spectrum,
)
from broker.state.merge import MAX_POINTS
from broker.state.objects import RememberedObject

LOG: Final = logging.getLogger(__name__)
DAY: Final = 86400
T = TypeVar("T")


class RedisStore:
    """Remembers objects in Redis under ``<prefix>:<survey>:<object id>:lc``, ``:sp`` and ``:md``.

    One worker writes one object at a time, since the stream is keyed by object; there is no lock.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "trifid",
        expiry_days: float = 1000.0,
        max_points: int = MAX_POINTS,
        timeout: float = 5.0,
    ) -> None:
        """``url`` as redis-py takes it (``redis://``, ``rediss://``, with user and password where needed).

        Objects not seen for ``expiry_days`` are forgotten.
        """
        self._client = redis.Redis.from_url(url, socket_timeout=timeout, socket_connect_timeout=timeout)
        self._prefix = prefix
        self._expiry = max(1, int(expiry_days * DAY))
        self._max_points = max_points

    def remember(self, alerts: Sequence[Alert]) -> list[ObjectState]:
        """See ``Store.remember``."""
        if not alerts:
            return []
        keys = list(dict.fromkeys(self._key(alert.survey, alert.object_id) for alert in alerts))
        names = [f"{key}:{kind}" for kind in ("lc", "sp", "md") for key in keys]
        # redis-py's types allow for decoded responses, which this client does not ask for.
        stored = cast("list[bytes | None]", self._call(lambda: self._client.mget(names)))
        count = len(keys)
        objects = {}
        damaged: dict[str, bytes] = {}
        for row, key in enumerate(keys):
            curve, spectrum, metadata = stored[row], stored[count + row], stored[2 * count + row]
            remembered = RememberedObject()
            position = self._read(f"{key}:lc", curve, decode_light_curve, damaged)
            if position is not None:
                remembered.light_curve, remembered.ra, remembered.dec, remembered.position_mjd = position
            remembered.spectrum = self._read(f"{key}:sp", spectrum, decode_spectrum, damaged)
            remembered.metadata = self._read(f"{key}:md", metadata, decode_metadata, damaged)
            objects[key] = remembered
        states = [objects[self._key(alert.survey, alert.object_id)].merge(alert, self._max_points) for alert in alerts]
        self._call(lambda: self._write(objects, dict(zip(keys, stored[:count], strict=True)), damaged))
        return states

    def put_spectra(self, survey: str, spectra: Mapping[str, Spectrum]) -> None:
        """See ``Store.put_spectra``."""
        self._put(survey, "sp", {name: encode_spectrum(s) for name, s in spectra.items()})

    def put_metadata(self, survey: str, metadata: Mapping[str, SourceMetadata]) -> None:
        """See ``Store.put_metadata``."""
        self._put(survey, "md", {name: encode_metadata(m) for name, m in metadata.items()})

    def ready(self) -> bool:
        """See ``Store.ready``."""
        try:
            return bool(self._client.ping())
        except redis.RedisError:
            return False

    def close(self) -> None:
        """See ``Store.close``."""
        self._client.close()

    def _key(self, survey: str, object_id: str) -> str:
        return f"{self._prefix}:{survey}:{object_id}"

    def _write(
        self, objects: Mapping[str, RememberedObject], before: Mapping[str, bytes | None], damaged: Mapping[str, bytes]
    ) -> None:
        """One pipeline: changed light curves are set, the others' expiry renewed, damaged values set aside."""
        pipeline = self._client.pipeline(transaction=False)
        for key, remembered in objects.items():
            value = encode_light_curve(remembered.light_curve, remembered.ra, remembered.dec, remembered.position_mjd)
            if value == before[key]:
                pipeline.expire(f"{key}:lc", self._expiry)
            else:
                pipeline.set(f"{key}:lc", value, ex=self._expiry)
        for name, value in damaged.items():
            pipeline.set(f"{name}:damaged", value, ex=self._expiry)
            if not name.endswith(":lc"):
                pipeline.delete(name)
        pipeline.execute()

    def _put(self, survey: str, kind: str, values: Mapping[str, bytes]) -> None:
        def write() -> None:
            pipeline = self._client.pipeline(transaction=False)
            for object_id, value in values.items():
                pipeline.set(f"{self._key(survey, object_id)}:{kind}", value, ex=self._expiry)
            pipeline.execute()

        if values:
            self._call(write)

    @staticmethod
    def _read(name: str, value: bytes | None, decode: Callable[[bytes], T], damaged: dict[str, bytes]) -> T | None:
        """Decode a stored value; one that cannot be read is set aside under ``<name>:damaged``, not lost."""
        if value is None:
            return None
        try:
            return decode(value)
        except StateError as error:
            LOG.error("stored value %s cannot be read and is set aside: %s", name, error)
            damaged[name] = value
            return None

    @staticmethod
    def _call(action: Callable[[], T]) -> T:
        try:
            return action()
        except (redis.ConnectionError, redis.TimeoutError) as error:  # BusyLoadingError is a ConnectionError
            raise DependencyUnavailableError(f"Redis is away: {error}") from error
