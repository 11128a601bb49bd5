"""What commands log, as lines on stderr."""

from __future__ import annotations

import logging
import sys

from broker.cli import text


class _Stderr(logging.Handler):
    """Writes to what stderr is at the time, without what a terminal would obey."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(text.lines(self.format(record)), file=sys.stderr)
        except Exception:  # as logging's own handlers: a failure to log ends nothing
            self.handleError(record)


_HANDLER = _Stderr()


def log_to_stderr(level: int | str = logging.WARNING, style: str = "%(message)s") -> None:
    """Log from ``level`` on, unless the process that called has handlers of its own."""
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(_HANDLER)
    if _HANDLER in root.handlers:
        _HANDLER.setFormatter(logging.Formatter(style))
        root.setLevel(level)
