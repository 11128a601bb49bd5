"""Finds the one alert that a batch fails on, so that the others go on."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

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
