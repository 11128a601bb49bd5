"""Decoding of alert packets: Trifid's decoder against fastavro's plain reading of the same packets, on one core."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import fastavro

from broker.sources import iter_packets
from broker.surveys import Decoder
from broker.surveys.simulator import simulate_alerts
from broker.surveys.wire import lsst_schema

SHARED = Path(__file__).resolve().parents[2] / "shared" / "alerts"
ROUNDS = 3


@cache
def parsed(schema_id: int) -> object:
    return fastavro.parse_schema(lsst_schema(schema_id))


def plain(payload: bytes) -> None:
    if payload[:1] == b"O":
        list(fastavro.reader(io.BytesIO(payload)))
    else:
        fastavro.schemaless_reader(io.BytesIO(payload[5:]), parsed(int.from_bytes(payload[1:5], "big")), None)


def seconds(read: Callable[[bytes], object], payloads: Sequence[bytes]) -> float:
    """CPU seconds a packet, the best of several rounds."""
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.process_time()
        for payload in payloads:
            read(payload)
        best = min(best, time.process_time() - start)
    return best / len(payloads)


def main() -> None:
    sets = {"simulated ZTF, no cutouts": [a.payload for a in simulate_alerts(20, 40, seed=0)]}
    for name, path in {
        "ZTF (671 real, 3.0 to 4.02)": "ztf/native.tar",
        "LSST wire format (18)": "lsst/confluent_wire",
    }.items():
        if (SHARED / path).exists():
            sets[name] = [p.payload for p in iter_packets([SHARED / path])]
        else:
            print(f"{name}: {SHARED / path} does not exist, left out", file=sys.stderr)
    for name, payloads in sets.items():
        decoder = Decoder()
        ours, theirs = seconds(decoder.decode, payloads), seconds(plain, payloads)
        print(
            f"{name}: {1 / ours:.0f} packets a second per core to an Alert, plain fastavro read {1 / theirs:.0f}, "
            f"ratio {theirs / ours:.2f}"
        )


if __name__ == "__main__":
    main()
