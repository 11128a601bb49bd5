"""What stands before every request: its size, its rate, its headers, and what is measured of it."""

from __future__ import annotations

import json
import logging
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from fastapi import HTTPException, Request
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from broker.metrics import WEB_REQUEST_SECONDS

log = logging.getLogger(__name__)

HEADERS: Final = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
_CLIENTS: Final = 20_000
"""Whose rates are remembered; the longest unheard of are forgotten."""
_BODYLESS_BYTES: Final = 65_536
"""Of a request's body but for uploads."""
_FILES: Final = ("/api/v1/classify/", "/api/v1/similar/")
"""What takes uploads, beside the form of a page."""
_LONGEST_PATH: Final = 4096


class RateLimit:
    """A token bucket for each client: so many requests a minute, and as many at once."""

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._lock = threading.Lock()
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, client: str, *, count: bool = True) -> float:
        """0 where the client may ask now, which counts unless told otherwise; else the seconds until it may."""
        now, rate = time.monotonic(), self.per_minute / 60.0
        with self._lock:
            left, since = self._left.pop(client, (float(self.per_minute), now))
            left = min(float(self.per_minute), left + (now - since) * rate)
            allowed = left >= 1.0
            self._left[client] = (left - 1.0 if allowed and count else left, now)
            if len(self._left) > _CLIENTS:
                self._left.popitem(last=False)
        return 0.0 if allowed else (1.0 - left) / rate


class _TooLargeError(HTTPException):
    """One of FastAPI's, which makes others that come up while a body is read into 400."""

    def __init__(self, limit: int) -> None:
        super().__init__(413, _too_large(limit))


class Guard:
    """Middleware, outermost: no answer leaves without HEADERS, and none with a traceback."""

    def __init__(self, app: ASGIApp, max_upload: int, admits: Callable[[Request], bool]) -> None:
        """``admits`` says of a request whether its body is worth reading; it runs in a thread of its own."""
        self._app, self._max_upload, self._admits = app, max_upload, admits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        head = scope["method"] == "HEAD"  # as GET in all but the body
        if head:
            scope = {**scope, "method": "GET"}
        limit = self._max_upload if _may_upload(scope) else _BODYLESS_BYTES
        status, begun, started = 500, time.perf_counter(), False
        read, admitted = 0, True

        async def bounded() -> Message:
            nonlocal read
            if not admitted:
                # Whoever may not ask sends no body: the route, which has none, refuses.
                return {"type": "http.request", "body": b"", "more_body": False}
            message = await receive()
            read += len(message.get("body", b""))
            if read > limit:
                raise _TooLargeError(limit)
            return message

        async def guarded(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                started, status = True, message["status"]
                given = {name.lower() for name, _ in message["headers"]}
                added = [(n.encode(), v.encode()) for n, v in HEADERS.items() if n.encode() not in given]
                if b"cache-control" not in given:
                    # What stays the same is asked for again, but not sent again.
                    static = scope["path"].startswith("/static/")
                    added.append((b"cache-control", b"no-cache" if static else b"no-store"))
                message = {**message, "headers": [*message["headers"], *added]}
            elif head and message["type"] == "http.response.body":
                if message.get("more_body", False):
                    return
                message = {"type": "http.response.body", "body": b"", "more_body": False}
            await send(message)

        try:
            refusal = _refusal(scope, limit)
            if refusal is None and scope["method"] in ("POST", "PUT", "PATCH") and scope["path"] != "/login":
                admitted = await run_in_threadpool(self._admits, Request(scope))
            if refusal is not None:
                await _answer(guarded, *refusal)
            else:
                await self._app(scope, bounded, guarded)
        except _TooLargeError:
            if not started:
                await _answer(guarded, 413, _too_large(limit))
        except Exception:
            number = scope.get("state", {}).get("fault") or secrets.token_hex(4)
            log.exception("request %s %s failed (%s)", scope["method"], scope["path"], number)
            if not started:
                await _answer(guarded, 500, f"a fault of the server, which its log has under {number}")
        finally:
            route = getattr(scope.get("route"), "path", "none")
            WEB_REQUEST_SECONDS.labels(route, f"{status // 100}xx").observe(time.perf_counter() - begun)


def _may_upload(scope: Scope) -> bool:
    path: str = scope["path"]
    if path.startswith(_FILES) or (path.startswith("/api/v1/watches/") and path.endswith("/content")):
        return True
    pages = path in ("/classify", "/watches") or path.startswith("/watches/")
    return bool(pages and scope["method"] == "POST")


def _refusal(scope: Scope, limit: int) -> tuple[int, str] | None:
    """Why a request is not even looked at."""
    headers = dict(scope["headers"])
    if len(scope["raw_path"]) + len(scope["query_string"]) > _LONGEST_PATH:
        return 414, f"an address has at most {_LONGEST_PATH} characters"
    if b"%00" in scope["raw_path"] + scope["query_string"]:
        return 422, "a zero byte in the address"
    length = headers.get(b"content-length", b"0")
    if not length.isdigit() or int(length[:20]) > limit:
        return 413, _too_large(limit)
    origin = headers.get(b"origin")
    changes = scope["method"] not in ("GET", "HEAD", "OPTIONS")
    if changes and origin is not None and origin.partition(b"://")[2] != headers.get(b"host"):
        # A page of somebody else's must not change anything in the name of who looks at it.
        return 403, "a request from a page of another site"
    return None


def _too_large(limit: int) -> str:
    return f"a request has at most {limit:,} bytes here"


async def _answer(send: Send, status: int, detail: str) -> None:
    body = json.dumps({"detail": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
