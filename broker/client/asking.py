"""How clients ask ``trifid web``: without redirects, which urllib follows to any host with the token in them."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from typing import Any, Final

from broker.errors import ConfigurationError, DependencyUnavailableError, TrifidError

BROKEN: Final = (OSError, ValueError, http.client.HTTPException)
"""What a server that does not answer, or not as servers do, or dies while it answers, gives rise to."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        """None: the redirect is the answer, an HTTPError."""


_OPENER = urllib.request.build_opener(_NoRedirects)


def ask(request: urllib.request.Request, timeout: float) -> Any:
    """The answer, a context manager as of urlopen; raises HTTPError for a redirect, too."""
    return _OPENER.open(request, timeout=timeout)


def answer_of(request: urllib.request.Request, timeout: float) -> Any:
    """The JSON of an answer; its refusals as our errors, with the server's reason."""
    if not request.full_url.startswith(("http://", "https://")):
        raise ConfigurationError(f"{request.full_url:.80} is no http:// or https:// URL")
    try:
        with ask(request, timeout) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            reason = _reason(error)
        kind: type[TrifidError] = DependencyUnavailableError if error.code >= 500 else ConfigurationError
        raise kind(f"{request.host}: {reason or error.reason}") from error
    except BROKEN as error:
        raise DependencyUnavailableError(f"{request.host} does not answer: {error}") from error


def _reason(error: urllib.error.HTTPError) -> str | None:
    """Why a server refuses, as it says itself; None where it does not say."""
    try:
        return str(json.load(error)["detail"])
    except (*BROKEN, KeyError, TypeError):
        return None
