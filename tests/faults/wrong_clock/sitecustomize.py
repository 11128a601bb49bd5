"""Python's wall clock, wrong by as many hours as a file says; for a worker with this folder in PYTHONPATH."""

from __future__ import annotations

import datetime
import os
import time
from pathlib import Path

_FILE = Path(os.environ["WRONG_CLOCK_HOURS"])
_time, _Datetime = time.time, datetime.datetime


def _seconds() -> float:
    return 3600 * float(_FILE.read_text())


class _Meta(type):
    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, _Datetime)


class _WrongDatetime(_Datetime, metaclass=_Meta):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
        return _Datetime.now(tz) + datetime.timedelta(seconds=_seconds())


time.time = lambda: _time() + _seconds()
datetime.datetime = _WrongDatetime  # type: ignore[misc]
