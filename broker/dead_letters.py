"""What happens to a bad alert: it is found, whatever step fails on it, and becomes a dead letter; the others go on.

- The decoder refuses what it cannot read, or cannot use, with a DecodeError that says why. What it fails on otherwise
  is found by ``isolate_first`` and refused likewise (``surveys/decoder.py``).
- A stage of the pipeline that fails on a batch is given its halves by ``isolate``, down to the one alert or spectrum to
  blame (``pipeline.py``; ``offline.py``, where a table's object becomes NotClassified with the reason).
- What fails outside of these, such as an annotation that Avro does not take, is found among the batch's messages by
  ``isolate_first`` (``streaming/handling.py``).

Each becomes a ``dead_letter`` with its reason. What concerns all alerts alike, a dependency that is unavailable or a
wrong configuration, is raised through all of them: the batch is tried again, or the service stops.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from broker.batch import DeadLetter, IncomingMessage
from broker.errors import ConfigurationError, DependencyUnavailableError, TrifidError

T = TypeVar("T")
R = TypeVar("R")


def isolate(
    items: Sequence[T],
    handle_all: Callable[[Sequence[T]], list[R]],
    failed: Callable[[T, Exception], list[R]],
) -> list[R]:
    """Handle a batch; where that fails, its halves, down to the one item to blame.

    ``failed`` is given that one and says what takes its place. Passes on errors that concern all alerts alike:
    DependencyUnavailableError, ConfigurationError.
    """
    if not items:
        return []
    try:
        return handle_all(items)
    except (DependencyUnavailableError, ConfigurationError):
        raise
    except Exception as error:  # whatever one alert sets off must not hold up the others
        if len(items) == 1:
            return failed(items[0], error)
        middle = len(items) // 2
        return isolate(items[:middle], handle_all, failed) + isolate(items[middle:], handle_all, failed)


def isolate_first(
    items: Sequence[T], handle_first: Callable[[Sequence[T]], R], failed: Callable[[T, Exception], R]
) -> R:
    """As ``isolate``, for a handler of as many leading items as it chooses; on failure it is given the first half.

    ``failed`` is given the first item where it is the one to blame. What comes after it is for the next call.
    """
    try:
        return handle_first(items)
    except (DependencyUnavailableError, ConfigurationError):
        raise
    except Exception as error:  # whatever one message sets off must not hold up the others
        if len(items) == 1:
            return failed(items[0], error)
    return isolate_first(items[: len(items) // 2], handle_first, failed)


def dead_letter(message: IncomingMessage, survey: str, error: Exception, alert_id: int | None = None) -> DeadLetter:
    """A message that cannot be handled, or one alert of it: the reason, and the traceback of an unexpected error."""
    return DeadLetter(message, survey, describe(error), alert_id, traceback=trace(error))


_FRAMES = 12


def trace(error: Exception) -> str | None:
    """The traceback with its last frames in full, and those of the exceptions behind it.

    None for an error raised on purpose: its message is meant to say all.
    """
    if isinstance(error, TrifidError):
        return None
    return "".join(traceback.format_exception(error, limit=-_FRAMES))


def describe(error: Exception) -> str:
    """Why an alert failed: the message of an error raised on purpose, else its kind, message and place."""
    if isinstance(error, TrifidError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    place = " < ".join(f"{frame.name} ({Path(frame.filename).name}:{frame.lineno})" for frame in reversed(frames))
    return f"{type(error).__name__}: {error} in {place}"
