"""How clients ask ``trifid web``: without redirects, which urllib follows to any host with the token in them."""

from __future__ import annotations

import urllib.request
from typing import Any


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        """None: the redirect is the answer, an HTTPError."""


_OPENER = urllib.request.build_opener(_NoRedirects)


def ask(request: urllib.request.Request, timeout: float) -> Any:
    """The answer, a context manager as of urlopen; raises HTTPError for a redirect, too."""
    return _OPENER.open(request, timeout=timeout)
