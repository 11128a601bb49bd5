"""Corrupted packets are refused with a reason or give valid alerts."""

from __future__ import annotations

import io
import json
import os
import re
import time
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pytest

from broker.avro.container import container_message, read_blocks, read_header
from broker.avro.wire import confluent_message
from broker.errors import DecodeError
from broker.records import (
    Alert,
    PhotometryKind,
)
from broker.sources import iter_packets
from broker.surveys import Decoder
from broker.surveys.lsst_schemas import lsst_schema
from broker.surveys.simulator import simulate_alerts
from tests.unit.surveys.test_decoder import HUGE, alerts_of, lsst, plain


def real_packets(folder: Path) -> dict[str, list[bytes]]:
    """Some of each form; simulated ones where there are no real ones."""
    simulated = [a.payload for a in simulate_alerts(5, 30, seed=3)]
    sets = {"simulated": simulated, "lsst, blank": [lsst(version) for version in (300, 704, 900, 1101)]}
    alerts = folder / "alerts"
    for name, path in {
        "ztf": "ztf/native.tar", "ztf, new": "ztf/recent_v4.02.avro", "lsst": "lsst/confluent_wire",
        "rubin": "lsst/rubin_v9_0.avro", "elasticc": "elasticc",
    }.items():  # fmt: skip
        if (alerts / path).exists():
            sets[name] = [packet.payload for packet in islice(iter_packets([alerts / path]), 60)]
    return sets


POISON = [float("nan"), float("inf"), -float("inf"), 1e300, -1e300, 0.0, -999.0, 5e-324]


class Corruption:
    """Ways to spoil a packet."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def __call__(self, payload: bytes) -> bytes:
        often = (self.bits, self.values, self.cut, self.huge)
        ways = (*often, *often, *often, self.floats, self.types, self.id)
        return ways[int(self.rng.integers(len(ways)))](payload)

    def start(self, payload: bytes) -> int:
        """Where the record begins, so that not all damage is to the long header."""
        if payload[:1] != b"O":
            return 5
        return len(read_header(payload).raw) + 16 if self.rng.random() < 0.8 else 0

    def bits(self, payload: bytes) -> bytes:
        data = bytearray(payload)
        for _ in range(int(self.rng.integers(1, 8))):
            data[int(self.rng.integers(self.start(payload), len(data)))] ^= 1 << int(self.rng.integers(8))
        return bytes(data)

    def values(self, payload: bytes) -> bytes:
        at = int(self.rng.integers(self.start(payload), len(payload)))
        return payload[:at] + self.rng.bytes(int(self.rng.integers(1, 40))) + payload[at + int(self.rng.integers(40)) :]

    def cut(self, payload: bytes) -> bytes:
        at = int(self.rng.integers(len(payload)))
        return payload[:at] if self.rng.random() < 0.7 else payload[:at] + payload[at + int(self.rng.integers(1, 99)) :]

    def huge(self, payload: bytes) -> bytes:
        """A length or count of any size where there was something else."""
        at = self.start(payload) + int(self.rng.integers(min(3000, len(payload) - self.start(payload))))
        number = HUGE[int(self.rng.integers(len(HUGE)))]
        return payload[:at] + number + payload[at + int(self.rng.integers(1, 9)) :]

    def id(self, payload: bytes) -> bytes:
        """Another schema's id, or a container that says it is in the wire format."""
        record = payload[self.start(payload) :]
        ids = (300, 400, 500, 600, 701, 704, 800, 900, 1000, 1101, 0, 2**32 - 1, int(self.rng.integers(2**32)))
        return confluent_message(ids[int(self.rng.integers(len(ids)))], record)

    def floats(self, payload: bytes) -> bytes:
        """Numbers that are none, in fields that are there."""
        record = plain(payload)
        self.poison(record)
        out = io.BytesIO()
        schema = self.schema(payload)
        fastavro.schemaless_writer(out, fastavro.parse_schema(schema), record)
        if payload[:1] != b"O":
            return payload[:5] + out.getvalue()
        return container_message(json.dumps(schema).encode(), out.getvalue())

    def poison(self, value: Any) -> None:
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(inner, (dict, list)):
                self.poison(inner)
            elif isinstance(inner, float) and self.rng.random() < 0.3:
                bad = POISON[int(self.rng.integers(len(POISON)))]
                value[key] = bad if abs(bad) < 1e38 or abs(inner) > 1e5 or not np.isfinite(bad) else 3e38

    def types(self, payload: bytes) -> bytes:
        """A container whose schema has another type than its record was written with."""
        record = payload[5:]
        if payload[:1] == b"O":
            (block,) = read_blocks(payload, read_header(payload))
            record = block.data[block.start : block.end]
        text = json.dumps(self.schema(payload))
        names = ["float", "double", "string", "long", "int", "bytes", "boolean", "null"]
        for _ in range(int(self.rng.integers(1, 4))):
            old, new = (f'"{names[int(self.rng.integers(len(names)))]}"' for _ in range(2))
            places = [match.start() for match in re.finditer(old, text)]
            if places:
                at = places[int(self.rng.integers(len(places)))]
                text = text[:at] + new + text[at + len(old) :]
        return container_message(text.encode(), record)

    def schema(self, payload: bytes) -> Any:
        if payload[:1] == b"O":
            return json.loads(read_header(payload).schema_json)
        return {k: v for k, v in lsst_schema(int.from_bytes(payload[1:5], "big")).items() if not k.startswith("__")}


def assert_valid(alert: Alert) -> None:
    curve = alert.light_curve
    assert np.isfinite(alert.mjd)
    assert -90 <= alert.dec <= 90
    assert 0 <= alert.ra <= 360
    assert alert.object_id
    assert alert.band
    assert np.all(np.isfinite(curve.mjd))
    assert np.all(np.diff(curve.mjd) >= 0)
    assert np.all((curve.flux_error > 0) & np.isfinite(curve.flux_error))
    assert np.all(np.isfinite(curve.flux) | (curve.kind == PhotometryKind.LIMIT))
    for score in (alert.real_bogus, alert.star_score):
        assert score is None or 0 <= score <= 1
    if alert.metadata is not None:
        assert not np.any(np.isinf(alert.metadata.values))


def test_ten_thousand_corrupted_packets_are_refused_with_a_reason_or_valid(request: pytest.FixtureRequest) -> None:
    folder = Path(os.environ.get("TRIFID_SHARED", request.config.rootpath.parent / "shared"))
    sets = list(real_packets(folder).values())
    corrupt = Corruption(np.random.default_rng(20261124))
    decoder = Decoder()
    slowest = 0.0
    outcomes: Counter[str] = Counter()
    batch: list[tuple[bytes, str]] = []
    for number in range(10_000):
        packets_of = sets[number % len(sets)]
        payload = corrupt(packets_of[int(corrupt.rng.integers(len(packets_of)))])
        start = time.thread_time()
        (result,) = decoder.decode_batch([payload])
        slowest = max(slowest, time.thread_time() - start)
        if isinstance(result, DecodeError):
            assert str(result)
            # Nothing was a surprise.
            assert not str(result).startswith("the packet cannot be read"), str(result)
            outcomes["refused"] += 1
        else:
            for alert in alerts_of(result):
                assert_valid(alert)
            outcomes["valid"] += 1
        batch.append((payload, str(result) if isinstance(result, DecodeError) else str(len(result))))
        if len(batch) == 100:
            together = decoder.decode_batch([payload for payload, _ in batch])
            assert [str(r) if isinstance(r, DecodeError) else str(len(r)) for r in together] == [
                said for _, said in batch
            ]
            batch.clear()
    print(f"{dict(outcomes)}, the slowest took {1000 * slowest:.1f} ms")
    assert outcomes["refused"] > 3000
    assert outcomes["valid"] > 500
    assert slowest < 1.0  # nothing hangs
