"""A schema registry in this process, for want of a real one that can be installed here.

Confluent's own and Karapace are in no registry of packages that this machine reaches. This is what their documentation
promises (https://docs.confluent.io/platform/current/schema-registry/develop/api.html: paths, status, error codes), and
whether two schemas are compatible is decided by Apache Avro's own rules (``avro.compatibility``). It is spoken to by
Confluent's client.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import unquote, urlsplit

from avro.compatibility import ReaderWriterCompatibilityChecker, SchemaCompatibilityType
from avro.errors import SchemaParseException
from avro.schema import parse


class RegistryError(Exception):
    def __init__(self, status: int, code: int, message: str) -> None:
        self.status, self.body = status, {"error_code": code, "message": message}


class SchemaRegistryServer:
    """Schemas by id from 1 on, versions by subject; ``level`` is the compatibility of all, ``levels`` by subject."""

    def __init__(self, level: str = "BACKWARD") -> None:
        self.level, self.levels = level, dict[str, str]()
        self.schemas: list[str] = []
        self.subjects: dict[str, list[int]] = {}
        self.requests: list[tuple[str, str]] = []
        self.broken = False
        """Whether all answers are 503, as of a registry behind a proxy that is being restarted."""
        server = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"] or 0))
                server.requests.append((self.command, self.path))
                try:
                    if server.broken:
                        raise RegistryError(503, 50302, "restarting")
                    status, found = 200, server.answer(self.command, self.path, json.loads(body or b"{}"))
                except RegistryError as error:
                    status, found = error.status, error.body
                data = json.dumps(found).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = _answer  # noqa: N815

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    def answer(self, method: str, address: str, body: dict[str, Any]) -> Any:
        match method, [unquote(part) for part in urlsplit(address).path.strip("/").split("/")]:
            case "POST", ["subjects", subject, "versions"]:
                return {"id": self._register(subject, body["schema"])}
            case "POST", ["subjects", subject]:
                return self._look_up(subject, body["schema"])
            case "GET", ["schemas", "ids", number]:
                if not 1 <= int(number) <= len(self.schemas):
                    raise RegistryError(404, 40403, f"Schema {number} not found")
                return {"schema": self.schemas[int(number) - 1]}
            case "GET", ["config"]:
                return {"compatibilityLevel": self.level}
            case "GET", ["config", subject]:
                if subject not in self.levels:
                    raise RegistryError(404, 40408, f"Subject '{subject}' does not have subject-level compatibility")
                return {"compatibilityLevel": self.levels[subject]}
        raise RegistryError(404, 404, "HTTP 404 Not Found")

    def _register(self, subject: str, text: str) -> int:
        try:
            schema = parse(text)
        except SchemaParseException as error:
            raise RegistryError(422, 42201, f"Invalid schema: {error}") from error
        versions = self.subjects.setdefault(subject, [])
        for number in versions:
            if parse(self.schemas[number - 1]) == schema and self.schemas[number - 1] == text:
                return number
        level = self.levels.get(subject, self.level)
        for number in versions if level.endswith("_TRANSITIVE") else versions[-1:]:
            before = parse(self.schemas[number - 1])
            pairs = {"BACKWARD": [(schema, before)], "FORWARD": [(before, schema)], "NONE": []}
            pairs["FULL"] = pairs["BACKWARD"] + pairs["FORWARD"]
            for reader, writer in pairs[level.removesuffix("_TRANSITIVE")]:
                result = ReaderWriterCompatibilityChecker().get_compatibility(reader, writer)
                if result.compatibility is not SchemaCompatibilityType.compatible:
                    raise RegistryError(
                        409, 409,
                        f'Schema being registered is incompatible with an earlier schema for subject "{subject}", '
                        f"details: {result.messages}",
                    )  # fmt: skip
        if text not in self.schemas:
            self.schemas.append(text)
        versions.append(self.schemas.index(text) + 1)
        return versions[-1]

    def _look_up(self, subject: str, text: str) -> dict[str, Any]:
        if subject not in self.subjects:
            raise RegistryError(404, 40401, f"Subject '{subject}' not found.")
        for version, number in enumerate(self.subjects[subject], 1):
            if self.schemas[number - 1] == text:
                return {"subject": subject, "version": version, "id": number, "schema": text}
        raise RegistryError(404, 40403, "Schema not found")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
