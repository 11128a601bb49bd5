"""What ``broker`` offers to programs of others."""

from __future__ import annotations

import doctest
import subprocess
import sys

import pytest

import broker


def test_the_example_is_true() -> None:
    assert doctest.testmod(broker, raise_on_error=False) == doctest.TestResults(failed=0, attempted=5)


@pytest.mark.parametrize("name", broker.__all__)
def test_each_name_is_there(name: str) -> None:
    assert getattr(broker, name).__name__ == name


def test_importing_it_loads_no_library() -> None:
    heavy = "{'numba', 'astropy', 'onnxruntime', 'pyarrow', 'confluent_kafka', 'numpy'}"
    code = f"import sys, broker; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        broker.nothing  # noqa: B018
