"""Regions of shared memory that a request leaves behind: none stays for good, however it ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from broker.errors import InferenceError
from broker.inference import shared_memory
from broker.inference.shared_memory import SharedMemory
from broker.inference.triton import TritonEngine
from broker.inference.triton_requests import Request


class Server:
    """Triton on this host, as far as regions go."""

    def __init__(self) -> None:
        self.regions: dict[str, Any] = {}
        self.refusal: Exception | None = None

    def register_system_shared_memory(self, name: str, *_: object, **__: object) -> None:
        self.regions[name] = None

    def unregister_system_shared_memory(self, name: str, **_: object) -> None:
        self.regions.pop(name, None)

    def get_system_shared_memory_status(self, **_: object) -> Server:
        return self

    def async_infer(self, *_: object, **__: object) -> None:
        if self.refusal is not None:
            raise self.refusal


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where regions are."""
    monkeypatch.setattr(shared_memory, "FOLDER", tmp_path)
    yield tmp_path
    assert not list(tmp_path.iterdir())


TENSORS = {"values": np.ones((4, 8), np.float32)}


def test_a_region_that_is_given_back_after_the_end_is_removed(folder: Path) -> None:
    """As of a request that was abandoned while its version was replaced: its file stayed as long as the process."""
    shared = SharedMemory(Server(), 1.0)
    _, first = shared.place(TENSORS)
    _, second = shared.place(TENSORS)
    assert first is not None
    assert second is not None
    shared.give_back(first)
    shared.close()
    assert [path.name for path in folder.iterdir()] == [second.name]
    shared.give_back(second, answered=False)


def test_a_region_whose_tensors_cannot_be_copied_is_used_again(folder: Path) -> None:
    shared = SharedMemory(Server(), 1.0)
    with pytest.raises(ValueError, match="OBJECT"):
        shared.place({"values": np.array(["no number"], object)})
    _, region = shared.place(TENSORS)
    assert len(list(folder.iterdir())) == 1
    shared.give_back(region)
    shared.close()


@pytest.mark.parametrize(
    ("refusal", "told"),
    [
        (ValueError("Cannot invoke RPC on closed channel!"), InferenceError),
        (InferenceServerException("not sent", "StatusCode.UNAVAILABLE"), InferenceServerException),
    ],
)
def test_a_request_that_cannot_be_sent_gives_its_region_back(
    folder: Path, refusal: Exception, told: type[Exception]
) -> None:
    server: Any = Server()
    server.refusal = refusal
    engine = object.__new__(TritonEngine)
    engine._client, engine._timeout, engine._shared = server, 1.0, SharedMemory(server, 1.0)
    for _ in range(3):
        with pytest.raises(told):
            engine.send(Request("trifid", "", TENSORS))
    assert len(list(folder.iterdir())) == 1
    engine._shared.close()
