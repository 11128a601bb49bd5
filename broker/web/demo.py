"""The page beside the demo: an index in a temporary folder, of what the demo's subscriber reads."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

import uvicorn
from pydantic import SecretStr

from broker.client import PublishedAnnotation
from broker.config import Settings, WebSettings
from broker.errors import ConfigurationError
from broker.web.app import parts_of, server
from broker.web.index import Index

_BATCH: Final = 200
_START_S: Final = 30.0


class WebAudience:
    """Serves the page while the demo runs, and then until Ctrl-C."""

    def __init__(self, port: int, say: Callable[[str], None]) -> None:
        self._port, self._say = port, say
        self._stack = ExitStack()
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="trifid-web-"))
        self.database: Final = f"sqlite:///{Path(folder) / 'web.sqlite'}"
        self._read: list[PublishedAnnotation] = []
        self._index: Index | None = None
        self._server: uvicorn.Server | None = None
        self._told = False

    def begin(self, settings: Settings) -> None:
        """Start the server; raises ConfigurationError where the port is taken."""
        web = WebSettings(port=self._port, database=SecretStr(self.database))
        self._index = Index(self.database)
        self._stack.callback(self._index.close)
        parts = self._stack.enter_context(parts_of(settings.model_copy(update={"web": web}), self._index, follow=False))
        self._server = server(parts)
        thread = threading.Thread(target=self._run, name="web", daemon=True)
        thread.start()
        self._stack.callback(thread.join, 10.0)
        end = time.monotonic() + _START_S
        while not self._server.started:
            if not thread.is_alive() or time.monotonic() > end:
                raise ConfigurationError(f"the page cannot be served on port {self._port}: give another --web-port")
            time.sleep(0.05)

    def _run(self) -> None:
        assert self._server is not None
        with suppress(SystemExit):  # of uvicorn, which has logged why
            self._server.run()

    def see(self, annotation: PublishedAnnotation) -> None:
        """Take an annotation into the index, some at a time."""
        self._read.append(annotation)
        if len(self._read) >= _BATCH:
            self._flush()

    def rest(self) -> None:
        """Have all that was read on the page, and say once that it is there."""
        self._flush()
        if not self._told:
            self._told = True
            self._say(f"look at http://127.0.0.1:{self._port}/ - Ctrl-C ends it")

    def end(self) -> None:
        """Stop the server, and forget everything."""
        if self._server is not None:
            self._server.should_exit = True
        self._stack.close()

    def _flush(self) -> None:
        assert self._index is not None
        if self._read:
            self._index.add(self._read)
        self._read = []
