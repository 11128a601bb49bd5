"""The reference set: embeddings of known objects that alerts are compared with."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import redis
from numpy.typing import NDArray

from broker.errors import ConfigurationError
from broker.redis_errors import redis_errors

_KEY: Final = "trifid:reference_set"
_TIMEOUT_S: Final = 10.0
"""A set of 20,000 embeddings has 20 MB."""
_ARRAYS: Final = ("version", "embeddings", "object_ids", "class_names", "k", "calibration_distances")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ReferenceSet:
    """n embeddings of reference objects; an object may have several, of light curves of different length."""

    version: str
    embeddings: NDArray[np.float32]
    """(n, 512) unit vectors."""
    object_ids: NDArray[np.str_]
    class_names: NDArray[np.str_]
    k: int
    """Neighbours whose mean distance is the anomaly distance."""
    calibration_distances: NDArray[np.float32]
    """(n,) sorted distances of the reference embeddings themselves to those of other objects."""

    def __len__(self) -> int:
        return len(self.embeddings)

    def to_bytes(self) -> bytes:
        """The set as one .npz file, embeddings in half precision."""
        out = io.BytesIO()
        np.savez_compressed(
            out,
            version=np.array(self.version),
            embeddings=self.embeddings.astype(np.float16),
            object_ids=self.object_ids.astype(np.str_),
            class_names=self.class_names.astype(np.str_),
            k=np.array(self.k, np.int32),
            calibration_distances=self.calibration_distances.astype(np.float32),
        )
        return out.getvalue()

    @staticmethod
    def from_bytes(data: bytes, origin: str) -> ReferenceSet:
        """The inverse of ``to_bytes``; raises ConfigurationError, naming ``origin``, for anything else."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                arrays = {name: file[name] for name in _ARRAYS}
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise ConfigurationError(f"{origin} is no reference set: {error!r}") from error
        except Exception as error:  # zipfile and zlib raise errors of their own
            raise ConfigurationError(f"{origin} is damaged: {error!r}") from error
        embeddings = arrays["embeddings"].astype(np.float32)
        size = len(arrays["object_ids"])
        k = int(arrays["k"])
        if embeddings.ndim != 2 or len(embeddings) != size or len(arrays["class_names"]) != size:
            raise ConfigurationError(f"{origin}: the reference set's arrays do not fit together")
        if not 0 < k < size:
            raise ConfigurationError(f"{origin}: {size} reference objects are too few for {k} neighbours")
        # Half precision moves the length of a unit vector by up to 1e-3.
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
        return ReferenceSet(
            str(arrays["version"]), embeddings, arrays["object_ids"], arrays["class_names"], k,
            np.sort(arrays["calibration_distances"]),
        )  # fmt: skip

    def save_npz(self, path: Path) -> None:
        """Write the set to a file."""
        path.write_bytes(self.to_bytes())

    @staticmethod
    def load_npz(path: Path) -> ReferenceSet:
        """Read a set from a file; raises ConfigurationError where it cannot be."""
        try:
            return ReferenceSet.from_bytes(path.read_bytes(), str(path))
        except OSError as error:
            raise ConfigurationError(f"reference set {path}: {error}") from error

    def to_redis(self, url: str) -> None:
        """Store the set in the Redis at ``url``, replacing an earlier one at once."""
        with _client(url) as client, redis_errors():
            client.set(_KEY, self.to_bytes())

    @staticmethod
    def from_redis(url: str) -> ReferenceSet | None:
        """The set stored in the Redis at ``url``, None where there is none."""
        with _client(url) as client, redis_errors():
            data = client.get(_KEY)
        return None if data is None else ReferenceSet.from_bytes(bytes(data), _KEY)


def _client(url: str) -> redis.Redis:
    return redis.Redis.from_url(url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S)
