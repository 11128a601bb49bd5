"""A server that runs as a child process: start, wait until it answers, stop, kill, start again."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from broker.errors import ConfigurationError

_POLL: Final = 0.1  # seconds between two looks whether the server answers
_LOG_TAIL: Final = 2000  # characters of the server's log that an error message quotes
_PR_SET_PDEATHSIG: Final = 1
_TROUBLE: Final = re.compile("error|exception|failed", re.IGNORECASE)


def _end_with_parent() -> None:
    """Have the kernel send SIGTERM to this process when its parent ends (prctl(2), PR_SET_PDEATHSIG)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


_LOCK: Final = ".in-use"
"""In a temporary folder: locked (flock) as long as a process lives that uses it, however it ends."""
_locks: weakref.WeakKeyDictionary[object, int] = weakref.WeakKeyDictionary()
"""The open lock of each owner's folder."""


def temporary_folder(owner: object, prefix: str) -> Path:
    """Make a folder that is removed with its owner, or when this process ends.

    A process that is killed removes nothing: what such ones left by this prefix is removed first, unless a server
    that they have started still runs there.
    """
    for path in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        _remove_if_nobody_has(path)
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    # It has its name once it is locked: whoever sweeps finds no lock, or one that is held.
    new = folder / f"{_LOCK}.new"
    lock = os.open(new, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    new.rename(folder / _LOCK)
    _locks[owner] = lock
    weakref.finalize(owner, _remove, folder, lock)
    return folder


def _remove(folder: Path, lock: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)


def _remove_if_nobody_has(folder: Path) -> None:
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR)
    except OSError:  # another user's, gone in the meantime, or being made
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
    else:
        _remove(folder, lock)


class ServerProcess(ABC):
    """One server of a test, a demonstration or a benchmark. As a context manager it starts and stops it."""

    def __init__(self, log: Path, *, start_timeout: float, stop_timeout: float, ends_with_parent: bool = False) -> None:
        """Remember where the server's output goes; ``start`` starts it. Timeouts are in seconds.

        With ``ends_with_parent`` the server is told to stop, on Linux, when the thread that started it ends, even
        where this process is killed.
        """
        self._ends_with_parent = ends_with_parent
        self.log: Final = log
        self._start_timeout = start_timeout
        self._stop_timeout = stop_timeout
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def _command(self) -> tuple[Sequence[str], dict[str, str]]:
        """The command to run and the environment to run it in."""

    @abstractmethod
    def _answers(self) -> bool:
        """Whether the server answers requests."""

    @property
    def pid(self) -> int | None:
        """Process id of the server, None where it does not run."""
        return self._process.pid if self.running and self._process is not None else None

    @property
    def running(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the server and wait until it answers.

        Raises ConfigurationError, with the end of its log, where it ends or does not answer in time.
        """
        command, environment = self._command()
        with self.log.open("ab") as log:
            # A process group of its own: an interrupt at the terminal is for the caller to pass on, and the
            # server's own children can be killed with it.
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_end_with_parent if self._ends_with_parent else None,
                # A server that outlives this process keeps its folder.
                pass_fds=[_locks[self]] if self in _locks else [],
            )
        deadline = time.monotonic() + self._start_timeout
        try:
            while not self._answers():
                if not self.running:
                    raise ConfigurationError(f"{command[0]} ended at its start: {self.log_tail()}")
                if time.monotonic() > deadline:
                    raise ConfigurationError(
                        f"{command[0]} did not answer in {self._start_timeout:.0f} s: {self.log_tail()}"
                    )
                time.sleep(_POLL)
        except BaseException:
            self.kill()
            raise

    def wait(self) -> None:
        """Wait until the server ends of itself."""
        if self._process is not None:
            self._process.wait()

    def terminate(self) -> None:
        """Ask the server to stop and wait until it has; kill it where it does not in time."""
        if self._process is not None and self.running:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(self._stop_timeout)
        self.kill()

    def kill(self) -> None:
        """End the server and its children at once, as a crash would."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def restart(self) -> None:
        """Stop the server if it runs, and start it on the same addresses and data."""
        self.terminate()
        self.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.terminate()

    def log_tail(self) -> str:
        """What the server said last, errors before all else, and what it said over and over once."""
        lines = self.log.read_text(errors="replace").splitlines()
        told = [line for line in lines if _TROUBLE.search(line)] or lines
        return "\n".join(dict.fromkeys(told))[-_LOG_TAIL:].strip() or "(no output)"
