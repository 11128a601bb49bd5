"""What the routes have in common: the parts of the server, and who asks."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Final

from fastapi import Depends, HTTPException, Request

from broker.config import Settings
from broker.state import Store
from broker.streaming.health import Readiness
from broker.tokens import LOCAL, Token, Tokens
from broker.web.follow import Follower
from broker.web.guard import RateLimit
from broker.web.index import Index
from broker.web.model import Model
from broker.web.teach import Teacher
from broker.web.versions import Similars

COOKIE: Final = "trifid_token"
_PORT: Final = re.compile(r":\d*$")
_LOOPBACK: Final = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True, slots=True)
class Services:
    """The parts of one server."""

    settings: Settings
    index: Index
    store: Store
    model: Model
    tokens: Tokens
    follower: Follower | None
    """None where annotations come from elsewhere, as in the demo."""
    requests: RateLimit
    classifications: RateLimit
    teacher: Teacher
    similar: Similars | None = None
    """None where no embeddings are kept."""
    readiness: Readiness | None = None
    """None where nobody asks the dependencies."""


async def _parts(request: Request) -> Services:  # FastAPI runs what is not async in a thread of its own
    return services(request)


def services(request: Request) -> Services:
    """Those of the application that a request came to."""
    found: Services = request.app.state.services
    return found


Parts = Annotated[Services, Depends(_parts)]


class LoginNeededError(Exception):
    """Somebody who looks at a page has to give a token first."""


def _who(request: Request, parts: Services) -> Token | None:
    """Whose request it is; None where a token is needed and none that is valid was given."""
    if not parts.settings.web.tokens_required:
        host = _PORT.sub("", request.headers.get("host", ""))
        if parts.settings.web.on_loopback and host not in _LOOPBACK:
            # Another name leads here: a proxy, or a page that has its name point to this machine.
            raise HTTPException(403, "without tokens only localhost is served: set web.require_login (docs/web.md)")
        return LOCAL
    kind, _, given = request.headers.get("authorization", "").partition(" ")
    token = given.strip() if kind.lower() == "bearer" else request.cookies.get(COOKIE, "")
    if not token:
        return None
    if not parts.tokens.was_valid(token):
        # Before the database is asked: whoever tries tokens, or sends any, is not to keep it busy.
        limit(parts.requests, address_of(request), count=False)
    return parts.tokens.find(token)


def address_of(request: Request) -> str:
    """Where a request comes from; behind one of ``web.trusted_proxies``, from where that says."""
    return request.client.host if request.client is not None else "unknown"


def identify(request: Request, parts: Services) -> Token | None:
    """Whose request it is, found and counted once; None without a valid token. Raises HTTPException."""
    if not hasattr(request.state, "token"):
        token = _who(request, parts)
        limit(parts.requests, _client(request, token))
        request.state.token = token
    found: Token | None = request.state.token
    return found


def client_of(request: Request) -> str:
    """Whose rate a request counts for."""
    return _client(request, request.state.token)


def _client(request: Request, token: Token | None) -> str:
    if token is not None and token is not LOCAL:
        return f"token {token.name}"
    return address_of(request)


def limit(rate: RateLimit, client: str, *, count: bool = True) -> None:
    """Raise 429 where a client asks too often; ``count`` is whether this request counts."""
    seconds = rate.wait(client, count=count)
    if seconds:
        headers = {"Retry-After": str(math.ceil(seconds))}
        raise HTTPException(429, f"more than {rate.per_minute} requests a minute", headers)


def requires(scope: str, *, page: bool = False) -> Callable[[Request], Token]:
    """A dependency: the token of a request, which must have a scope; of a page, raises LoginNeededError instead."""

    def check(request: Request) -> Token:
        token = identify(request, services(request))
        if token is None:
            if page:
                raise LoginNeededError
            raise HTTPException(401, "give a token: Authorization: Bearer ...", {"WWW-Authenticate": "Bearer"})
        if scope not in token.scopes:
            raise HTTPException(403, f"the token {token.name} has no scope {scope}")
        return token

    return check
