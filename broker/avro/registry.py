"""Schemas by id from a Confluent schema registry, with two fallbacks: a folder on disk, and a source such as LSST's
package.

The registry's REST API: https://docs.confluent.io/platform/current/schema-registry/develop/api.html. What
happens when it is unavailable, and LSST's own addresses: docs/schemas.md. One's own schemas are registered here.
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import urlsplit

from broker.avro.schema import MAX_SCHEMA_BYTES, AvroSchema, WriterSchema, read_schema
from broker.errors import ConfigurationError, DecodeError, DependencyUnavailableError, TrifidError

# Only where there is a registry: the client brings an HTTP client and OAuth, a sixth of what a worker's start imports.
if TYPE_CHECKING:
    from confluent_kafka.schema_registry import SchemaRegistryClient, SchemaRegistryError

log = logging.getLogger(__name__)

T = TypeVar("T")

_LARGEST_ID: Final = 2**31 - 1  # ids are Java's int in the registry; the wire format leaves room for 2**32
_NOT_FOUND: Final = (404, 40403)  # HTTP status and the registry's own code; another 404 is a wrong address
_NOT_REGISTERED: Final = (40401, 40402, 40403)  # no such subject, version, or schema in it
_INCOMPATIBLE: Final = 409
_REFUSED: Final = (401, 403, 404, 405, 422)  # what asking again does not change
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
    """Gives the schema of an id: from memory, else from disk, else from the registry, else from ``fallback``.

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
        fallback: Callable[[int], AvroSchema] | None = None,
        check: Callable[[AvroSchema], object] = WriterSchema.parse,
    ) -> None:
        """Set up a client, which connects when it is first asked; without ``url`` the ``fallback`` is all there is.

        ``fallback`` gives the schema of an id, or raises DecodeError; ``check`` raises DecodeError for a schema that is
        of no use.

        ``cache_dir`` None is for no files on disk. ``ca_location`` is PEM, a file or a folder; None for the
        authorities of ``certifi``. A call waits for the registry for at most twice ``timeout_s`` (seconds) in all,
        name resolution, connection, headers and body; it is asked a second time where that is left. Raises
        ConfigurationError, without naming a secret, where a setting is wrong.
        """
        if url is None and fallback is None:
            raise ConfigurationError("schema registry: no address")
        self._fallback, self._check = fallback, check
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
        from confluent_kafka.schema_registry import SchemaRegistryClient

        from broker.avro.registry_http import guard

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
        """The schema of an id.

        Raises DecodeError, naming the id, where there is no such schema or it is of no use, and
        DependencyUnavailableError where only the registry can say and it is unavailable.
        """
        if self._client is None:
            assert self._fallback is not None
            return self._fallback(schema_id)
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
                    return self._from_fallback(schema_id, error)
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
            schema = self._parsed(text)
        except ValueError as error:
            raise self._refusal(schema_id, str(error)) from error
        self._to_disk(schema_id, text)
        return schema

    def _fetch(self, client: SchemaRegistryClient, schema_id: int) -> str:
        """The schema's text.

        Raises _NoSuchIdError where the registry has none, _UnavailableError where it does not answer, DecodeError
        where what it has is of no use.
        """
        from confluent_kafka.schema_registry import SchemaRegistryError

        from broker.avro.registry_http import AnswerTooLargeError, Exchange

        try:
            found = Exchange(lambda: client.get_schema(schema_id)).result(self._total_s)
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

    def _parsed(self, text: str | bytes) -> AvroSchema:
        """The schema in a text; raises ValueError, with the reason, where it is not a valid one of a record."""
        schema = read_schema(text, MAX_SCHEMA_BYTES)
        try:
            self._check(schema)
        except DecodeError as error:
            raise ValueError(f"is of no use: {_shortened(error)}") from error
        return schema

    def register(self, subject: str, schema_text: str, *, write: bool = True) -> int:
        """The id of a schema as the next version of ``subject``, which the registry checks by its own rule.

        Asked again with the same schema, the registry gives the same id. Without ``write`` it has to be there already.
        Raises ConfigurationError where the registry says no, with its reason: above all that readers of the versions
        before would not be able to read the next one, or the other way round, as the subject's compatibility asks;
        DependencyUnavailableError where it is unavailable.
        """
        from confluent_kafka.schema_registry import Schema, SchemaRegistryError

        client, schema = self._client, Schema(schema_text, "AVRO")
        assert client is not None
        with self._lock:
            try:
                if write:
                    found = self._ask(lambda: client.register_schema(subject, schema))
                else:
                    found = self._ask(lambda: int(client.lookup_schema(subject, schema).schema_id or 0))
            except SchemaRegistryError as error:
                raise self._no(client, subject, error) from error
        if not 0 < found <= _LARGEST_ID:
            raise ConfigurationError(f"schema registry {self._address}: gives {found} as the id of {subject}")
        return found

    def _no(self, client: SchemaRegistryClient, subject: str, error: SchemaRegistryError) -> TrifidError:
        """What to raise for a refusal to register, or to find, a schema."""
        said = f"{_shortened(error.error_message)} (HTTP {error.http_status_code})"
        where = f"schema registry {self._address}: subject {subject}"
        if error.http_status_code == _INCOMPATIBLE:
            return ConfigurationError(
                f"{where}: the schema is not compatible with its versions before, as {self._rule(client, subject)} "
                f"asks: {said}"
            )
        if error.error_code in _NOT_REGISTERED:
            return ConfigurationError(f"{where} does not have this release's schema, and may not be written: {said}")
        if error.http_status_code in _REFUSED:
            return ConfigurationError(f"{where}: {said}")
        return DependencyUnavailableError(f"{where}: {said}")

    def _rule(self, client: SchemaRegistryClient, subject: str) -> str:
        """The compatibility of a subject, or where it has none the registry's, as the registry calls it."""
        from confluent_kafka.schema_registry import SchemaRegistryError

        for name in (subject, None):
            try:
                return f"{self._ask(partial(client.get_compatibility, name))} compatibility"
            except (SchemaRegistryError, DependencyUnavailableError):
                continue
        return "its compatibility"

    def _ask(self, question: Callable[[], T]) -> T:
        """The registry's answer; raises SchemaRegistryError for its no, DependencyUnavailableError for silence."""
        from confluent_kafka.schema_registry import SchemaRegistryError

        from broker.avro.registry_http import Exchange

        assert self._client is not None
        try:
            return Exchange(question).result(self._total_s)
        except SchemaRegistryError:
            raise
        except Exception as error:  # the client lets through what HTTP, TLS, JSON and its own parsing raise
            said = f"{type(error).__name__}: {_shortened(error)}"
            raise DependencyUnavailableError(f"schema registry {self._address}: {said}") from error
        finally:
            self._client.clear_caches()  # type: ignore[no-untyped-call]

    def _from_disk(self, schema_id: int) -> AvroSchema | None:
        if self._folder is None:
            return None
        path = self._folder / f"{schema_id}.avsc"
        try:
            with path.open("rb") as file:
                content = file.read(MAX_SCHEMA_BYTES + 1)
            return self._parsed(content)
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

    def _from_fallback(self, schema_id: int, why: _UnavailableError | _NoSuchIdError) -> AvroSchema:
        """The fallback's schema, also where the registry has none: LSST's is emptied at every deployment."""
        try:
            if self._fallback is None:
                raise DecodeError("no fallback")
            schema = self._fallback(schema_id)
        except DecodeError:
            if isinstance(why, _NoSuchIdError):
                raise self._refusal(schema_id, str(why)) from why
            raise DependencyUnavailableError(
                f"schema registry {self._address} is unavailable ({why}), and nothing else knows schema id {schema_id}"
            ) from why
        if schema_id not in self._warned:
            self._warned.add(schema_id)
            log.warning(
                "schema registry %s does not give schema id %d (%s): read with %s",
                self._address,
                schema_id,
                why,
                schema.get("name"),
            )
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
