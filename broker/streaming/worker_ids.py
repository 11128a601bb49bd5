"""Ids for workers that cannot be told theirs: the replicas of one service on one machine, as Docker Compose scales it.

A container that is created again has another host's name, and a worker of another name waits for
``kafka.session_timeout_s`` until it gets the partitions of the one that it replaces.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from broker.config import Settings
from broker.errors import ConfigurationError

MOST: Final = 1000
"""Workers of a group on one machine."""


@contextmanager
def own_worker_id(settings: Settings) -> Iterator[Settings]:
    """The settings with an id that no other process has meanwhile, where ``kafka.worker_id_folder`` is given.

    Ids are ``worker-1``, ``worker-2`` and so on. Each is a locked file of the folder: the kernel lets the lock go when
    the process ends, however it ends, and the next process takes the lowest that is free. Raises ConfigurationError
    where the folder cannot be used.
    """
    folder = settings.kafka.worker_id_folder
    if folder is None:
        yield settings
        return
    for number in range(1, MOST + 1):
        path = folder / f"worker-{number}.lock"
        try:
            file = path.open("a")
        except OSError as error:
            raise ConfigurationError(f"kafka.worker_id_folder: {error}") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            except OSError as error:
                raise ConfigurationError(f"kafka.worker_id_folder: {path} cannot be locked: {error}") from error
            kafka = settings.kafka.model_copy(update={"worker_id": path.stem})
            yield settings.model_copy(update={"kafka": kafka})
            return
    raise ConfigurationError(f"kafka.worker_id_folder: all {MOST} ids in {folder} are taken")
