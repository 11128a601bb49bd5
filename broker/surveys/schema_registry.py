"""Schemas by id from a Confluent schema registry, with two fallbacks: a folder on disk, and LSST's package.

The registry's REST API: https://docs.confluent.io/platform/current/schema-registry/develop/api.html. What
happens when it is unavailable, and LSST's own addresses: docs/schemas.md.
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from confluent_kafka.schema_registry import SchemaRegistryClient, SchemaRegistryError

from broker.avro.compiler import check_schema
from broker.avro.schema import AvroSchema, read_schema
from broker.errors import ConfigurationError, DecodeError, DependencyUnavailableError
from broker.surveys.lsst_schemas import lsst_schema
from broker.surveys.registry_http import MAX_SCHEMA_BYTES, AnswerTooLargeError, Exchange, guard

log = logging.getLogger(__name__)

_LARGEST_ID: Final = 2**31 - 1  # ids are Java's int in the registry; the wire format leaves room for 2**32
_NOT_FOUND: Final = (404, 40403)  # HTTP status and the registry's own code; another 404 is a wrong address
_TRIES: Final = 2
_RETRY_PAUSE_MS: Final = 200
_SLACK_S: Final = 0.5  # for the pause, so that two tries that time out by themselves are told as such
_REFUSED_FOR_S: Final = 60.0
_MOST_REFUSED: Final = 1000
_UNAVAILABLE_FOR_S: Final = 5.0
_MOST_SAID: Final = 200  # characters of somebody else's message that are passed on


class _UnavailableError(Exception):
    """No answer of the registry's own: not reached, refused, broken, or something else at its address."""


class _NoSuchIdError(Exception):
    """The registry answers that it has no such schema."""


class SchemaRegistry:
    """Gives the schema of an id: from memory, else from disk, else from the registry, else from LSST's package.

    An id means one schema for ever, so what was found is kept for ever. For several threads: one asks the
    registry at a time, the others wait.
    """

    def __init__(
        self,
        url: str | None,
        *,
        cache_dir: Path | None = None,
        username: str | None = None,
        password: str | None = None,
        ca_location: Path | None = None,
        certificate_location: Path | None = None,
        key_location: Path | None = None,
        key_password: str | None = None,
        timeout_s: float = 5.0,
    ) -> None:
        """Set up a client, which connects when it is first asked; without ``url`` LSST's package is all there is.

        ``cache_dir`` None is for no files on disk. ``ca_location`` is PEM, a file or a folder; None for the
        authorities of ``certifi``. A call waits for the registry for at most twice ``timeout_s`` (seconds) in all,
        name resolution, connection, headers and body; it is asked a second time where that is left. Raises
        ConfigurationError, without naming a secret, where a setting is wrong.
        """
        self._client: SchemaRegistryClient | None = None
        self._folder: Path | None = None
        self._address = ""
        self._lock = threading.Lock()
        self._known: dict[int, AvroSchema] = {}
        self._refused: OrderedDict[int, tuple[float, str]] = OrderedDict()
        self._warned: set[int] = set()
        self._unavailable: tuple[float, str] | None = None
        self._total_s = _TRIES * timeout_s + _SLACK_S
        if url is None:
            return
        self._address, place = _address(url)
        self._folder = cache_dir / place if cache_dir is not None else None
        conf: dict[str, str | int | float] = {
            "url": self._address,
            "timeout": timeout_s,
            "max.retries": _TRIES - 1,
            "retries.wait.ms": _RETRY_PAUSE_MS,
        }
        if (username is None) != (password is None):
            raise ConfigurationError("schema registry: a user name and a password go together")
        if username is not None:
            if ":" in username:
                raise ConfigurationError("schema registry: the user name must not have a colon (RFC 7617)")
            conf["basic.auth.user.info"] = f"{username}:{password}"
        for name, value in (
            ("ssl.ca.location", ca_location),
            ("ssl.certificate.location", certificate_location),
            ("ssl.key.location", key_location),
            ("ssl.key.password", key_password),
        ):
            if value is not None:
                conf[name] = str(value)
        try:
            self._client = SchemaRegistryClient(conf)
        except (ValueError, OSError) as error:  # ssl.SSLError is an OSError
            raise ConfigurationError(f"schema registry {self._address}: {error}") from error
        guard(self._client)

    def __call__(self, schema_id: int) -> AvroSchema:
        """The schema of an id, as ``broker.surveys.lsst_schemas.lsst_schema`` gives it.

        Raises DecodeError, naming the id, where there is no such schema or it is of no use, and
        DependencyUnavailableError where only the registry can say and it is unavailable.
        """
        if self._client is None:
            return lsst_schema(schema_id)
        schema = self._known.get(schema_id)
        if schema is not None:
            return schema
        if not 0 < schema_id <= _LARGEST_ID:
            raise DecodeError(f"schema id {schema_id}: a schema registry's ids are 1 to {_LARGEST_ID}")
        with self._lock:
            schema = self._known.get(schema_id)  # another thread may have found it meanwhile
            if schema is None:
                self._raise_if_refused(schema_id)
                schema = self._from_disk(schema_id)
            if schema is None:
                try:
                    schema = self._from_registry(self._client, schema_id)
                except (_UnavailableError, _NoSuchIdError) as error:
                    # Not kept: what the registry will say counts more.
                    return self._from_package(schema_id, error)
            self._known[schema_id] = schema
        return schema

    def _raise_if_refused(self, schema_id: int) -> None:
        until, reason = self._refused.get(schema_id, (0.0, ""))
        if time.monotonic() < until:
            raise DecodeError(reason)
        self._refused.pop(schema_id, None)

    def _refusal(self, schema_id: int, reason: str) -> DecodeError:
        """The error to raise, which is kept for a minute: alerts of one bad id come by the thousand."""
        reason = f"schema id {schema_id} of {self._address}: {reason}"
        self._refused[schema_id] = (time.monotonic() + _REFUSED_FOR_S, reason)
        while len(self._refused) > _MOST_REFUSED:
            self._refused.popitem(last=False)
        return DecodeError(reason)

    def _from_registry(self, client: SchemaRegistryClient, schema_id: int) -> AvroSchema:
        if self._unavailable is not None and time.monotonic() < self._unavailable[0]:
            raise _UnavailableError(self._unavailable[1])
        self._unavailable = None
        try:
            text = self._fetch(client, schema_id)
        except _UnavailableError as error:
            # A batch with many ids is not to wait for each.
            self._unavailable = (time.monotonic() + _UNAVAILABLE_FOR_S, str(error))
            raise
        try:
            schema = _parsed(text)
        except ValueError as error:
            raise self._refusal(schema_id, str(error)) from error
        self._to_disk(schema_id, text)
        return schema

    def _fetch(self, client: SchemaRegistryClient, schema_id: int) -> str:
        """The schema's text.

        Raises _NoSuchIdError where the registry has none, _UnavailableError where it does not answer, DecodeError
        where what it has is of no use.
        """
        try:
            found = Exchange(client, schema_id).result(self._total_s)
        except SchemaRegistryError as error:
            said = f"{_shortened(error.error_message)} (HTTP {error.http_status_code})"
            if (error.http_status_code, error.error_code) == _NOT_FOUND:
                raise _NoSuchIdError(said) from error
            raise _UnavailableError(said) from error
        except AnswerTooLargeError as error:
            raise self._refusal(schema_id, str(error)) from error
        except Exception as error:  # the client lets through what HTTP, TLS, JSON and its own parsing raise
            raise _UnavailableError(f"{type(error).__name__}: {_shortened(error)}") from error
        finally:
            client.clear_caches()  # type: ignore[no-untyped-call]  # it would keep even an answer that is of no use
        if not isinstance(found.schema_str, str):
            raise _UnavailableError("its answer has no schema")
        if found.schema_type not in (None, "AVRO"):
            raise self._refusal(schema_id, f"is of type {_shortened(found.schema_type)}, not AVRO")
        if found.references:
            raise self._refusal(schema_id, "refers to other schemas, where LSST's are whole; that is not supported")
        return found.schema_str

    def _from_disk(self, schema_id: int) -> AvroSchema | None:
        if self._folder is None:
            return None
        path = self._folder / f"{schema_id}.avsc"
        try:
            with path.open("rb") as file:
                content = file.read(MAX_SCHEMA_BYTES + 1)
            return _parsed(content)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.warning("schema registry: %s is of no use, and is fetched again: %s", path, error)
            return None

    def _to_disk(self, schema_id: int, text: str) -> None:
        """Keep a schema on disk; where that fails, the next start has to ask the registry again."""
        if self._folder is None:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            # Renamed when complete: other workers may read the same folder.
            with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=self._folder, delete=False) as file:
                temporary = Path(file.name)
                try:
                    file.write(text)
                    file.flush()
                    temporary.chmod(0o644)  # no secret, and other workers may run as other users
                    os.replace(temporary, self._folder / f"{schema_id}.avsc")
                except BaseException:
                    temporary.unlink(missing_ok=True)
                    raise
        except OSError as error:
            log.warning("schema registry: schema id %d cannot be kept on disk: %s", schema_id, error)

    def _from_package(self, schema_id: int, why: _UnavailableError | _NoSuchIdError) -> AvroSchema:
        """LSST's published schema, also where the registry has none: LSST's is emptied at every deployment."""
        try:
            schema = lsst_schema(schema_id)
        except DecodeError:
            if isinstance(why, _NoSuchIdError):
                raise self._refusal(schema_id, str(why)) from why
            raise DependencyUnavailableError(
                f"schema registry {self._address} is unavailable ({why}), and nothing else knows schema id {schema_id}"
            ) from why
        if schema_id not in self._warned:
            self._warned.add(schema_id)
            log.warning(
                "schema registry %s does not give schema id %d (%s): read with LSST's published schema %d.%d",
                self._address,
                schema_id,
                why,
                *divmod(schema_id, 100),
            )
        return schema


def _parsed(text: str | bytes) -> AvroSchema:
    """The schema in a text; raises ValueError, with the reason, where it is not a valid one of a record."""
    schema = read_schema(text, MAX_SCHEMA_BYTES)
    try:
        check_schema(schema)
    except DecodeError as error:
        raise ValueError(f"is of no use: {_shortened(error)}") from error
    return schema


def _address(url: str) -> tuple[str, str]:
    """A registry's address without a slash at its end, and the name of its folder.

    Raises ConfigurationError, which leaves the address out where it may hold a password.
    """
    try:
        parts = urlsplit(url.strip())
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigurationError(f"schema registry: not an address: {error}") from error
    if "@" in url:
        raise ConfigurationError("schema registry: user and password go into settings of their own, not the address")
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment or "," in url:
        raise ConfigurationError(f"schema registry: {url!r} is not one address such as https://host/path")
    place = host + (f":{port}" if port is not None else "") + parts.path
    # The path is part of it: two registries may share a host.
    return url.strip().rstrip("/"), re.sub(r"[^a-z0-9.-]+", "_", place.lower()).strip("_.")


def _shortened(message: object) -> str:
    return " ".join(str(message).split())[:_MOST_SAID]
