"""How many threads ``python -m training`` computes with."""

from __future__ import annotations

import os
import runpy
import sys

import pytest
import torch

from training.__main__ import threads


@pytest.mark.parametrize(
    ("environment", "cores", "expected"),
    [
        ({}, 8, 8),
        ({"OMP_NUM_THREADS": "1"}, 8, 1),
        ({"OMP_NUM_THREADS": "3", "LOCAL_WORLD_SIZE": "2"}, 8, 3),
        ({"LOCAL_WORLD_SIZE": "3"}, 8, 2),
        ({"LOCAL_WORLD_SIZE": "16"}, 8, 1),
        ({"OMP_NUM_THREADS": "0"}, 4, 4),
        ({"OMP_NUM_THREADS": "many"}, 4, 4),
    ],
)
def test_threads_are_those_asked_for(environment: dict[str, str], cores: int, expected: int) -> None:
    assert threads(environment, cores) == expected


def test_the_command_keeps_to_what_the_environment_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    """It used to take all cores: beside other work two threads that wait for each other take five times as long."""
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(sys, "argv", ["training", "--help"])
    monkeypatch.delitem(sys.modules, "training.__main__")
    try:
        torch.set_num_threads(2)
        with pytest.raises(SystemExit):
            runpy.run_module("training", run_name="__main__")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
