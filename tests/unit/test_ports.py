from __future__ import annotations

import subprocess
import sys

GIVE_PORTS = """
from broker.embedded.ports import free_port
print(*(free_port() for _ in range(200)), flush=True)
input()
"""


def test_no_two_processes_are_given_the_same_port() -> None:
    """Of some 14,000 ports, 400 taken at random have two alike in 99.7 % of all cases."""
    processes = [
        subprocess.Popen([sys.executable, "-c", GIVE_PORTS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        lines = [process.stdout.readline() for process in processes if process.stdout is not None]
    finally:
        for process in processes:
            process.communicate("\n")
    ports = [int(port) for line in lines for port in line.split()]
    assert len(ports) == len(set(ports)) == 400
