"""System shared memory through which a Triton server on the same host reads the inputs of a request.

Only inputs go that way. So a request that was abandoned may still be read by the server while its region already holds
the next one: what comes of it is thrown away. Outputs in shared memory would be overwritten.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import re
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tritonclient import grpc as tritongrpc
from tritonclient.utils import InferenceServerException

log = logging.getLogger(__name__)

FOLDER: Final = Path("/dev/shm")  # where shm_open(3) has its files on Linux
_NAME: Final = re.compile(r"trifid-[0-9a-f]{32}")
_ALIGNED: Final = 64  # bytes, a cache line
_MIB: Final = 1 << 20


def sizes(tensors: Mapping[str, NDArray[Any]]) -> tuple[dict[str, int], int]:
    """Offset of each tensor in a region, and the bytes of them all."""
    offsets, end = {}, 0
    for name, array in tensors.items():
        offsets[name] = end
        end += -(-array.nbytes // _ALIGNED) * _ALIGNED
    return offsets, end


class Region:
    """A file of shared memory of this process, by a name that no other has, and locked as long as the process lives.

    The lock is the kernel's (flock): it ends with the process however that ends, and is seen through the borders of
    containers, so that what a dead process left can be told from what a living one uses.
    """

    def __init__(self, size: int) -> None:
        """Make a region of ``size`` bytes; raises OSError where there is no such memory, or not so much."""
        while True:
            self.name = f"trifid-{uuid.uuid4().hex}"
            self.path = FOLDER / self.name
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX)
                # Else writing to a full tmpfs would end the process by SIGBUS.
                os.posix_fallocate(self._file, 0, size)
                # Whoever swept between open and flock has taken it for a dead one's.
                if self.path.exists():
                    self._memory = mmap.mmap(self._file, size)
                    break
            except OSError:
                self.path.unlink(missing_ok=True)
                os.close(self._file)
                raise
            os.close(self._file)
        self.size = size
        self.read_until = 0.0
        """Until when, by ``time.monotonic``, the server may be reading for a request that nobody waits for any more."""

    def put(self, tensors: Mapping[str, NDArray[Any]]) -> list[Any]:
        """Copy tensors into the region, and return the inputs of a request that refer to them."""
        inputs = []
        offsets, _ = sizes(tensors)
        for name, array in tensors.items():
            target = np.frombuffer(self._memory, array.dtype, array.size, offsets[name]).reshape(array.shape)
            np.copyto(target, array)
            tensor = _input(name, array)
            tensor.set_shared_memory(self.name, array.nbytes, offsets[name])
            inputs.append(tensor)
        return inputs

    def close(self) -> None:
        """Give the memory back; a server that has it mapped keeps it until it is told otherwise."""
        self.path.unlink(missing_ok=True)
        self._memory.close()
        os.close(self._file)


class SharedMemory:
    """The regions of one engine, for any number of requests at a time; what cannot go that way goes in the message."""

    def __init__(self, client: Any, timeout: float) -> None:
        """``client`` is Triton's; each question to the server is abandoned after ``timeout`` seconds."""
        self._client, self._timeout = client, timeout
        self._lock = threading.Lock()
        self._free: list[Region] = []
        self._known: set[str] = set()
        """Names of regions that the server has mapped, as far as is known."""
        self._refused: str | None = None
        self._closed = False
        self._swept = False

    @property
    def used(self) -> bool:
        """Whether the server reads from regions, as far as has been tried."""
        return bool(self._known) and self._refused is None

    def place(self, tensors: Mapping[str, NDArray[Any]]) -> tuple[list[Any], Region | None]:
        """Inputs of a request, and the region that holds them; None where they are in the message itself.

        ``give_back`` has to be called for the region.
        """
        region = None if self._refused else self._region(sizes(tensors)[1])
        if region is None:
            return in_message(tensors), None
        try:
            return region.put(tensors), region
        except BaseException:
            self.give_back(region)
            raise

    def give_back(self, region: Region | None, *, answered: bool = True) -> None:
        """The region may be used for another request.

        Where this one was not ``answered`` the server may be reading yet, and must not be told to unmap what it reads.
        """
        if region is None:
            return
        if not answered:
            region.read_until = time.monotonic() + 2 * self._timeout
        with self._lock:
            kept = region.name in self._known and not self._closed
            if kept:
                self._free.append(region)
        if not kept:  # the server was started anew in the meantime, or the engine is closed: the next has it unmapped
            region.close()

    def look(self) -> None:
        """The server may have been started anew: ask which regions it knows; what it refused it may take now."""
        self._refused = None
        mapped = self._mapped()
        with self._lock:
            self._known &= mapped
            self._swept = False
            unknown = [region for region in self._free if region.name not in mapped]
            self._free = [region for region in self._free if region.name in mapped]
        for region in unknown:
            region.close()

    def close(self) -> None:
        """Have the server unmap the regions that are not in use, and remove them."""
        with self._lock:
            regions, self._free = self._free, []
            self._refused, self._closed = "the engine is closed", True
        for region in regions:
            self._drop(region)

    def _region(self, size: int) -> Region | None:
        """A region of at least ``size`` bytes that the server has mapped."""
        with self._lock:
            region = self._free.pop() if self._free else None
        if region is not None and region.size < size:
            self._drop(region)
            region = None
        if region is None:
            try:
                region = Region(-(-size // _MIB) * _MIB)
            except OSError as error:
                self._refuse(f"no {size} bytes in {FOLDER}: {error}")
                return None
        if region.name in self._known:
            return region
        try:
            # The name is in no other /dev/shm: a server that can map it has this host's, and may open the file.
            self._client.register_system_shared_memory(
                region.name, f"/{region.name}", region.size, client_timeout=self._timeout
            )
        except InferenceServerException as error:
            region.close()
            self._refuse(str(error))
            return None
        with self._lock:
            self._known.add(region.name)
            sweep, self._swept = not self._swept, True
        if sweep:
            log.info("Triton reads its inputs from shared memory")
            self._sweep()
        return region

    def _refuse(self, reason: str) -> None:
        if self._refused is None:
            log.info("inputs are sent to Triton in messages, not through shared memory: %s", reason)
        self._refused = reason

    def _drop(self, region: Region) -> None:
        with self._lock:
            known = region.name in self._known
            self._known.discard(region.name)
        if known and time.monotonic() >= region.read_until:  # else the next engine has it unmapped
            self._unregister(region.name)
        region.close()

    def _unregister(self, name: str) -> None:
        try:
            self._client.unregister_system_shared_memory(name, client_timeout=self._timeout)
        except InferenceServerException as error:
            log.debug("Triton keeps shared memory %s: %s", name, error)

    def _mapped(self) -> set[str]:
        """Names of all regions that the server knows; none where it does not answer."""
        try:
            return set(self._client.get_system_shared_memory_status(client_timeout=self._timeout).regions)
        except InferenceServerException:
            return set()

    def _sweep(self) -> None:
        """Remove regions whose process is gone, here and in the server, which is known to be on this host."""
        mapped = self._mapped()
        for name in filter(_NAME.fullmatch, mapped):
            if not (FOLDER / name).exists():
                self._unregister(name)
        for path in FOLDER.glob("trifid-*"):
            if _NAME.fullmatch(path.name) and _remove_if_nobody_has(path):
                log.info("removed the shared memory %s of a process that is gone", path.name)
                if path.name in mapped:
                    self._unregister(path.name)


def _remove_if_nobody_has(path: Path) -> bool:
    try:
        file = os.open(path, os.O_RDWR)
    except OSError:  # gone in the meantime, or another user's
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except OSError:
        return False
    finally:
        os.close(file)
    return True


def in_message(tensors: Mapping[str, NDArray[Any]]) -> list[Any]:
    """Inputs of a request that hold the tensors themselves."""
    inputs = []
    for name, array in tensors.items():
        tensor = _input(name, array)
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    return inputs


def _input(name: str, array: NDArray[Any]) -> Any:
    return tritongrpc.InferInput(name, array.shape, "BOOL" if array.dtype == np.bool_ else "FP32")
