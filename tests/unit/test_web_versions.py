"""Which version the web server takes for the served one, where the manifest cannot be read for a while."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from broker.config import Settings
from broker.errors import ConfigurationError
from broker.web import versions
from broker.web.versions import Versions


def test_a_manifest_that_could_not_be_read_once_is_read_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a network file system that fails for a moment: it counted as seen, and the version before as served."""
    now = [1000.0]
    file: dict[str, Any] = {"print": (1, 0, 0), "version": "A", "fails": False}

    def load(*_: object, **__: object) -> Any:
        if file["fails"]:
            raise ConfigurationError("no model manifest: Input/output error")
        return SimpleNamespace(model_version=file["version"])

    monkeypatch.setattr(versions, "fingerprint", lambda _: file["print"])
    monkeypatch.setattr(versions, "load_manifest", load)
    monkeypatch.setattr(versions.time, "monotonic", lambda: now[0])
    served = Versions(Settings())
    assert served.served() == "A"
    file |= {"print": (2, 0, 0), "version": "B", "fails": True}
    assert [served.served() for _ in range(3)] == ["A"] * 3
    assert caplog.text.count("A goes on: no model manifest") == 1  # and not at each request
    file["fails"] = False
    assert served.served() == "A"
    now[0] += 61.0
    assert served.served() == "B"
    file |= {"print": (3, 0, 0), "fails": True}
    assert served.served() == "B"
    file |= {"print": (4, 0, 0), "version": "C", "fails": False}  # what was put in its place is read at once
    assert served.served() == "C"
