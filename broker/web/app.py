"""The application: parts, routes and what is answered where something is wrong."""

from __future__ import annotations

import logging
import secrets
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final
from urllib.parse import urlencode

import sqlalchemy as sa
import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, RedirectResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from broker import __version__
from broker.build import build_store
from broker.config import Settings
from broker.errors import ConfigurationError
from broker.postgres import answers_within
from broker.redis_client import RedisConnection
from broker.state import Store
from broker.streaming.health import answer
from broker.tokens import Tokens
from broker.web import alike, answers, pages, plane, skyportal, watch_api, watch_pages
from broker.web.api import admin, api
from broker.web.described import describe
from broker.web.follow import Follower
from broker.web.guard import Guard, RateLimit
from broker.web.index import Index
from broker.web.model import Model
from broker.web.services import LoginNeededError, Services, identify, requires
from broker.web.teach import Teacher
from broker.web.versions import Similars, Versions

log = logging.getLogger(__name__)

_MIB: Final = 1 << 20
_KEEP_ALIVE_S: Final = 15
_CONNECTIONS: Final = 200
_ANSWER_S: Final = 10.0
"""Longest wait of a request for one answer of the database, if that is PostgreSQL."""
_NO_REASON: Final = "does not answer; /readyz at web.metrics_port, and the log, say why"
_DESCRIPTION: Final = (
    "What Trifid says of the objects of a survey's alert stream: classes with calibrated probabilities, anomaly "
    "scores, light curves, spectra. Fields of annotations are those of annotation.avsc (docs/annotation.md)."
)


@contextmanager
def parts_of(settings: Settings, index: Index, *, follow: bool = True) -> Iterator[Services]:
    """The parts of a server, with its thread that fills the index where ``follow``."""
    store: Store = build_store(settings, read_only=True)
    versions = Versions(settings)
    similar = _similar(settings, versions)
    follower = Follower(settings, index) if follow else None
    teacher = Teacher(index, RedisConnection(settings.redis.address()))
    try:
        teacher.start()
        if follower is not None:
            follower.__enter__()
        yield Services(
            settings,
            index,
            store,
            Model(settings, versions),
            Tokens(index.engine),
            follower,
            RateLimit(settings.web.requests_per_minute),
            RateLimit(settings.web.classifications_per_minute),
            teacher,
            similar,
        )
    finally:
        if follower is not None:
            follower.__exit__(None, None, None)
        teacher.close()
        store.close()
        if similar is not None:
            similar.close()


def _similar(settings: Settings, versions: Versions) -> Similars | None:
    """What finds similar objects, where they are kept and this machine knows of which model."""
    try:
        return Similars(settings, versions) if settings.similar.enabled else None
    except ConfigurationError as error:
        log.warning("similar objects are not shown: %s", error)
        return None


def routes() -> FastAPI:
    """All routes of API and pages, without the parts that answer them: enough for ``openapi()``."""
    app = FastAPI(
        title="Trifid",
        version=__version__,
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.include_router(api)
    app.include_router(alike.router)
    app.include_router(answers.router)
    app.include_router(admin)
    app.include_router(skyportal.router)
    app.include_router(watch_api.api)
    app.include_router(pages.router)
    app.include_router(plane.router)
    app.include_router(watch_pages.router)
    app.mount("/static", pages.static)
    app.openapi = partial(describe, app)  # type: ignore[method-assign]
    return app


def application(parts: Services) -> ASGIApp:
    """What a server of ASGI runs."""
    app = routes()
    app.state.services = parts

    @app.get("/healthz", include_in_schema=False)
    async def alive() -> PlainTextResponse:  # in no thread: they may all wait for Redis or the database
        return PlainTextResponse("ok\n")

    @app.get("/readyz", include_in_schema=False)
    async def ready() -> Response:
        checks, notes = ({}, {}) if parts.readiness is None else (parts.readiness.ready(), parts.readiness.notes())
        if parts.settings.web.tokens_required:  # reasons have names of hosts
            checks = {name: problem and _NO_REASON for name, problem in checks.items()}
            notes = dict.fromkeys(notes, _NO_REASON)
        good, body = answer("ready", checks, notes)
        return Response(body, 200 if good else 503, media_type="application/json")

    @app.get("/metrics", include_in_schema=False, dependencies=[Depends(requires("read"))])
    def metrics() -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    @app.exception_handler(Exception)
    def fault(request: Request, error: Exception) -> Response:
        request.state.fault = secrets.token_hex(4)  # under which Guard logs it
        detail = f"a fault of the server, which its log has under {request.state.fault}"
        return JSONResponse({"detail": detail}, 500)

    @app.exception_handler(LoginNeededError)
    def log_in(request: Request, error: LoginNeededError) -> Response:
        # What was sent with a form is lost: its page is where one can go on.
        path = request.scope["raw_path"].decode("latin-1").partition("?")[0]
        asked = request.url.query if request.method in ("GET", "HEAD") else ""
        page = f"{path}?{asked}" if asked else path if request.method == "GET" else path.removesuffix("/feedback")
        return RedirectResponse("/login?" + urlencode({"next": page}), 303)

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> Response:
        return _refused(request, HTTPException(422, _wrong(error)))

    @app.exception_handler(StarletteHTTPException)
    def refused(request: Request, error: StarletteHTTPException) -> Response:
        return _refused(request, error)

    @app.exception_handler(sa.exc.OperationalError)
    @app.exception_handler(sa.exc.TimeoutError)
    def unavailable(request: Request, error: sa.exc.SQLAlchemyError) -> Response:
        log.error("database of the index: %s", getattr(error, "orig", error))
        return _refused(request, HTTPException(503, "the index does not answer now", {"Retry-After": "5"}))

    web = parts.settings.web
    guard: Any = Guard(
        app, web.max_upload_mib * _MIB, lambda request: _admits(request, parts)
    )  # Starlette and uvicorn name the same types differently
    application: Any = ProxyHeadersMiddleware(guard, list(web.trusted_proxies)) if web.trusted_proxies else guard

    async def limited(scope: Scope, receive: Receive, send: Send) -> None:
        with answers_within(_ANSWER_S):
            await application(scope, receive, send)

    return limited


def _admits(request: Request, parts: Services) -> bool:
    """Whether the body of a request is worth reading."""
    try:
        return identify(request, parts) is not None
    except (HTTPException, sa.exc.SQLAlchemyError):
        return False


def _wrong(error: RequestValidationError) -> str:
    """What is wrong with a request, in one line, without what was sent: that may be long."""
    wrong = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"][1:])
        said = "there is no such parameter" if problem["type"] == "extra_forbidden" else str(problem["msg"])
        wrong.append(f"{where}: {said}" if where else said)
    return "; ".join(wrong[:5])


def _refused(request: Request, error: StarletteHTTPException) -> Response:
    if pages.is_page(request):
        return pages.refused(request, error.status_code, str(error.detail), error.headers)
    return JSONResponse({"detail": error.detail}, error.status_code, error.headers)


class Server(uvicorn.Server):
    """Ends by a signal as if it were told to: uvicorn's raises the signal again, and nothing is closed."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Have SIGINT and SIGTERM end it."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def server(parts: Services) -> uvicorn.Server:
    """What answers requests while its ``run`` does, until SIGTERM, Ctrl-C or ``should_exit``."""
    web = parts.settings.web
    config: dict[str, Any] = {
        "host": web.address,
        "port": web.port,
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,  # application looks at them, from trusted proxies only
        "limit_concurrency": _CONNECTIONS,
        "timeout_keep_alive": _KEEP_ALIVE_S,
        "timeout_graceful_shutdown": 5,
    }
    return Server(uvicorn.Config(application(parts), **config))
