"""Decoding of alert packets to Alerts, in batches and one by one, against fastavro's plain reading of the same packets.

All on one core, in one run: read the ratios.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cache
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import fastavro
import numpy as np

from broker.avro.container import read_blocks, read_header
from broker.sources import iter_packets
from broker.surveys import Decoder
from broker.surveys.lsst_schemas import lsst_schema
from broker.surveys.simulator import simulate_alerts

SHARED = Path(__file__).resolve().parents[2] / "shared" / "alerts"
ROUNDS = 5
BATCH = 256
LEAST = 1024
"""Packets in a round: fewer are repeated, in random order."""
START = "import time; from broker.surveys import warm_up; t = time.time(); warm_up(); print(time.time() - t)"


@cache
def parsed(schema: int | bytes) -> Any:
    """A schema by LSST's id or its text, parsed once, as a consumer of a stream would keep it."""
    return fastavro.parse_schema(lsst_schema(schema) if isinstance(schema, int) else json.loads(schema))


def plain(payload: bytes) -> None:
    """What fastavro makes of a message: all of its fields, with the schema kept between messages."""
    if payload[:1] == b"O":
        header = read_header(payload)
        schema = parsed(header.schema_json)
        for block in read_blocks(payload, header):
            records = io.BytesIO(block.data)
            records.seek(block.start)
            for _ in range(block.number):
                fastavro.schemaless_reader(records, schema, None)
    else:
        fastavro.schemaless_reader(io.BytesIO(payload[5:]), parsed(int.from_bytes(payload[1:5], "big")), None)


def one_by_one(read: Callable[[bytes], object]) -> Callable[[Sequence[bytes]], None]:
    def read_all(payloads: Sequence[bytes]) -> None:
        for payload in payloads:
            read(payload)

    return read_all


def in_batches(decoder: Decoder) -> Callable[[Sequence[bytes]], None]:
    def read_all(payloads: Sequence[bytes]) -> None:
        for start in range(0, len(payloads), BATCH):
            decoder.decode_batch(payloads[start : start + BATCH])

    return read_all


def microseconds(ways: Sequence[Callable[[Sequence[bytes]], None]], payloads: Sequence[bytes]) -> list[float]:
    """CPU time a packet of each way, the best of several rounds; the ways take turns."""
    best = [float("inf")] * len(ways)
    for _ in range(ROUNDS):
        for number, way in enumerate(ways):
            start = time.process_time()
            way(payloads)
            best[number] = min(best[number], time.process_time() - start)
    return [1e6 * seconds / len(payloads) for seconds in best]


def print_start() -> None:
    """Seconds until the machine is compiled, with an empty cache of Numba's and with the one that leaves."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", START]
        environment = {**os.environ, "NUMBA_CACHE_DIR": folder}
        cold, warm = (float(subprocess.check_output(command, env=environment)) for _ in range(2))
    print(f"compiling at the start: {cold:.1f} s the first time on a machine, {warm:.2f} s from then on")


def main() -> None:
    print_start()
    sets = {"simulated ZTF, no cutouts": [a.payload for a in simulate_alerts(20, 40, seed=0)]}
    for name, path in {
        "ZTF (671 real, 3.0 to 4.02)": "ztf/native.tar",
        "ZTF (420 real, 4.02 with forced photometry)": "ztf/recent_v4.02.avro",
        "LSST wire format (18, of 12 versions)": "lsst/confluent_wire",
        "Rubin (100 real, schema in the packet)": "lsst/rubin_v9_0.avro",
        "ELAsTiCC (5607)": "elasticc",
    }.items():
        if (SHARED / path).exists():
            sets[name] = [p.payload for p in iter_packets([SHARED / path])]
        else:
            print(f"{name}: {SHARED / path} does not exist, left out", file=sys.stderr)
    rng = np.random.default_rng(0)
    for name, payloads in sets.items():
        repeated = list(islice(cycle(payloads), max(LEAST, len(payloads))))
        shuffled = [repeated[i] for i in rng.permutation(len(repeated))]
        decoder = Decoder()
        batch, single, theirs = microseconds(
            [in_batches(decoder), one_by_one(decoder.decode), one_by_one(plain)], shuffled
        )
        print(
            f"{name}: to Alerts {batch:.1f} us a packet in batches of {BATCH} ({1e6 / batch:.0f}/s), "
            f"{single:.0f} us one by one; plain fastavro {theirs:.0f} us; "
            f"ratios {theirs / batch:.1f} and {theirs / single:.2f}"
        )


if __name__ == "__main__":
    main()
