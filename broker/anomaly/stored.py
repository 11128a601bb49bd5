"""The reference set in Redis: one a model, so that workers that have no file of it find it there."""

from __future__ import annotations

import logging
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Final

import redis

from broker.anomaly.calibration import Calibration, calibration_path, with_scores
from broker.anomaly.reference_set import ReferenceSet, digest, read_checked
from broker.errors import ConfigurationError
from broker.redis_client import RedisConnection

log = logging.getLogger(__name__)

_KEY: Final = "trifid:reference_set"
_TIMEOUT_S: Final = 10.0
"""A set has 6 MB."""
EXPIRY_S: Final = 180 * 86_400
"""A set that no worker has started with for so long, of a model replaced long ago, takes no memory any more."""


def key_of(model: str) -> str:
    """Where the set of a model (``Manifest.identity``) is."""
    return f"{_KEY}:{model}"


def scores_key_of(reference: ReferenceSet) -> str:
    """Where the calibration of a set's combined scores is."""
    return f"{key_of(reference.model)}:scores:{reference.version}"


def put(url: str, model: str, data: bytes) -> None:
    """Store the file ``data`` as the set of ``model`` in the Redis at ``url``, replacing an earlier one at once."""
    with closing(connect(url)) as connection:
        connection.call(lambda client: client.set(key_of(model), data, ex=EXPIRY_S))


def get(url: str, model: str) -> bytes | None:
    """The file stored as the set of ``model`` in the Redis at ``url``, None where there is none.

    Empty where there is something that is no file, such as a hash, which is then replaced as another file is.
    """
    with closing(connect(url)) as connection:
        try:
            data = connection.get(key_of(model))
        except redis.ResponseError:
            return b""
        if data is not None:
            connection.call(lambda client: client.expire(key_of(model), EXPIRY_S))
    return data


def shared(url: str, model: str, path: Path, sha256: str | None) -> ReferenceSet:
    """The set of ``model``: the one in Redis if it is that of ``sha256``, else the file's, which is then put there.

    Without ``sha256`` it is the file's own. So what Redis has from an earlier export of the model, or what somebody
    else has put there, never wins over what the manifest says. Raises DependencyUnavailableError where Redis is
    unavailable, ConfigurationError where there is no set that can be used.
    """
    stored = get(url, model)
    if stored is not None and sha256 is not None and digest(stored) == sha256:
        return ReferenceSet.from_bytes(stored, key_of(model))
    try:
        data = read_checked(path, sha256)
    except ConfigurationError as error:
        if stored is None:
            raise
        raise ConfigurationError(
            f"Redis holds another reference set of {model} (SHA-256 {digest(stored)}) than the manifest names, and "
            f"there is no file to replace it with: {error}"
        ) from error
    reference = ReferenceSet.from_bytes(data, str(path))
    reference.check_model(model, reference.embeddings.shape[1])
    if stored != data:
        if stored is not None:
            log.warning(
                "the reference set of %s in Redis (SHA-256 %s) is replaced by %s (SHA-256 %s)",
                model, digest(stored), path, digest(data),
            )  # fmt: skip
        put(url, model, data)
    return reference


def shared_scores(url: str, reference: ReferenceSet, path: Path) -> ReferenceSet:
    """``reference`` with the calibration in the file beside ``path``, which is then put into Redis, or in Redis.

    As it is where neither has one. A file of another set, as where an image has that of an earlier version, counts for
    nothing where Redis has the right one. Raises DependencyUnavailableError where Redis is unavailable,
    ConfigurationError where there is no other calibration than one that cannot be used.
    """
    key, own, unusable = scores_key_of(reference), reference, None
    try:
        own = with_scores(reference, path)
    except ConfigurationError as error:
        unusable = error
    with closing(connect(url)) as connection:
        if own.scores is not None:
            data = calibration_path(path).read_bytes()
            connection.call(lambda client: client.set(key, data, ex=EXPIRY_S))
            return own
        stored = connection.get(key)
        if stored is None and unusable is not None:
            raise unusable
        if stored is None:
            log.warning("no calibration of combined anomaly scores for reference set %s: there are none", own.version)
            return reference
        connection.call(lambda client: client.expire(key, EXPIRY_S))
    calibration = Calibration.from_bytes(stored, key)
    calibration.check(reference)
    return replace(reference, scores=calibration)


def connect(url: str) -> RedisConnection:
    """To the Redis at ``url``, with the time that a set takes."""
    return RedisConnection(url, timeout=_TIMEOUT_S, connect_timeout=_TIMEOUT_S)
