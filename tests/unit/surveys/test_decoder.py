"""All real packets decode, with as many points as a plain reading of them counts; nothing else does."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pytest

from broker.errors import DecodeError
from broker.records import Alert, PhotometryKind
from broker.sources import iter_packets
from broker.surveys import Decoder, lsst
from broker.surveys.simulator import simulate_alerts
from broker.surveys.wire import confluent_message, lsst_schema

RNG = np.random.default_rng(20261124)


def plain(payload: bytes) -> dict[str, Any]:
    """The packet as fastavro alone reads it, whole."""
    if payload[:1] == b"O":
        return next(fastavro.reader(io.BytesIO(payload)))  # type: ignore[return-value]
    schema = fastavro.parse_schema(lsst_schema(int.from_bytes(payload[1:5], "big")))
    return fastavro.schemaless_reader(io.BytesIO(payload[5:]), schema, None)  # type: ignore[return-value]


def expected_counts(survey: str, record: dict[str, Any]) -> tuple[int, int, int]:
    """Detections, forced points and limits, counted point by point."""
    if survey == "ztf":
        candidates = [record["candidate"], *(record["prv_candidates"] or [])]
        detections = sum(c.get("magpsf") is not None and c["sigmapsf"] > 0 for c in candidates)
        limits = sum(c.get("magpsf") is None and (c["diffmaglim"] or -999) > -99 for c in candidates)
        forced = sum(
            f["forcediffimflux"] is not None and f["forcediffimflux"] > -99999 and f["forcediffimfluxunc"] > 0
            for f in record.get("fp_hists") or []
        )
        return detections, forced, limits

    def usable(point: dict[str, Any]) -> bool:
        flux = point.get("psfFlux", point.get("psFlux"))
        error = point.get("psfFluxErr", point.get("psFluxErr"))
        return flux is not None and error is not None and np.isfinite(flux) and error > 0

    detections = [record["diaSource"], *(record["prvDiaSources"] or [])]
    limits = [p for p in record.get("prvDiaNondetectionLimits") or [] if p["diaNoise"] > 0]
    return sum(map(usable, detections)), sum(map(usable, record["prvDiaForcedSources"] or [])), len(limits)


@pytest.mark.parametrize(
    ("folder", "count", "surveys"),
    [
        ("ztf", 1091, {"ztf": 1091}),
        ("lsst", 157, {"lsst": 157}),
        ("elasticc", 5607, {"elasticc": 5607}),
    ],
)
def test_all_packets_decode_to_as_many_points_as_they_hold(
    shared: Path, folder: str, count: int, surveys: dict[str, int]
) -> None:
    decoder = Decoder()
    seen: Counter[str] = Counter()
    for packet in iter_packets([shared / "alerts" / folder]):
        (alert,) = decoder.decode(packet.payload)
        seen[alert.survey] += 1
        kinds = np.bincount(alert.light_curve.kind, minlength=3)
        assert tuple(kinds.tolist()) == expected_counts(alert.survey, plain(packet.payload)), packet.name
        assert np.all(np.diff(alert.light_curve.mjd) >= 0)
        assert np.all(np.isfinite(alert.light_curve.flux) | (alert.light_curve.kind == PhotometryKind.LIMIT))
    assert sum(seen.values()) == count
    assert dict(seen) == surveys


def test_ztf_fluxes_are_those_of_the_magnitudes(shared: Path) -> None:
    decoder = Decoder()
    negative = totals = 0
    for packet in iter_packets([shared / "alerts" / "ztf" / "native.tar"]):
        (alert,) = decoder.decode(packet.payload)
        candidate = plain(packet.payload)["candidate"]
        row = np.flatnonzero(
            (alert.light_curve.mjd == candidate["jd"] - 2400000.5)
            & (alert.light_curve.kind == PhotometryKind.DETECTION)
        )[-1]
        sign = -1 if candidate["isdiffpos"] in ("f", "0") else 1
        assert alert.light_curve.flux[row] == pytest.approx(
            sign * 10 ** (-0.4 * (candidate["magpsf"] - 31.4)), rel=1e-4
        )
        reference = alert.light_curve.reference_flux[row]
        if 0 <= candidate["distnr"] <= 1.4 and candidate["magnr"] > 0:
            assert reference == pytest.approx(10 ** (-0.4 * (candidate["magnr"] - 31.4)), rel=1e-4)
            totals += 1
        else:
            assert np.isnan(reference)
        negative += sign < 0
    assert negative > 50
    assert totals > 50


def test_lsst_reference_flux_makes_the_science_flux(shared: Path) -> None:
    decoder = Decoder()
    checked = 0
    for packet in iter_packets([shared / "alerts" / "lsst" / "rubin_v9_0.avro"]):
        (alert,) = decoder.decode(packet.payload)
        source = plain(packet.payload)["diaSource"]
        if len(alert.light_curve) == 1 and source["scienceFlux"] is not None:
            total = alert.light_curve.flux[0] + alert.light_curve.reference_flux[0]
            assert total == pytest.approx(source["scienceFlux"], rel=1e-4, abs=0.1)
            assert alert.mjd == pytest.approx(source["midpointMjdTai"] - 37 / 86400, abs=1e-9)
            checked += 1
    assert checked > 50


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "empty"),
        (b"hello", "neither an Avro container"),
        (b"Obj\x01", "cut short"),
        (b"\x00\x00", "wire format"),
        (confluent_message(987654, b"xyz"), "unknown schema id 987654"),
        (confluent_message(900, b"xyz"), "damaged Avro record"),
    ],
)
def test_what_is_no_alert_is_refused_with_the_reason(payload: bytes, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        Decoder().decode(payload)


def test_a_container_of_something_else_is_refused() -> None:
    schema = fastavro.parse_schema({"type": "record", "name": "x", "fields": [{"name": "a", "type": "int"}]})
    out = io.BytesIO()
    fastavro.writer(out, schema, [{"a": 1}])
    with pytest.raises(DecodeError, match="no alerts of a known survey"):
        Decoder().decode(out.getvalue())


def _damaged(payload: bytes) -> bytes:
    data = bytearray(payload)
    kind = RNG.integers(4)
    if kind == 0:
        return bytes(data[: RNG.integers(len(data))])
    for _ in range(1 if kind == 1 else RNG.integers(1, 20)):
        where = RNG.integers(len(data))
        data[where] = RNG.integers(256) if kind == 2 else data[where] ^ (1 << RNG.integers(8))
    return bytes(data)


def _decode_or_refuse(decoder: Decoder, payload: bytes) -> list[Alert] | None:
    try:
        return decoder.decode(payload)
    except DecodeError:
        return None


def test_damaged_packets_are_refused_or_still_valid() -> None:
    decoder = Decoder()
    whole = [alert.payload for alert in simulate_alerts(5, 30, seed=3)]
    refused = 0
    for number in range(2000):
        alerts = _decode_or_refuse(decoder, _damaged(whole[number % len(whole)]))
        refused += alerts is None
        for alert in alerts or []:
            assert -90 <= alert.dec <= 90
            assert np.all(np.isfinite(alert.light_curve.mjd))
            assert np.all(alert.light_curve.flux_error > 0)
    assert refused > 500


def test_all_lsst_versions_are_known() -> None:
    for version in (300, 400, 500, 600, 601, 700, 701, 702, 703, 704, 800, 900, 1000, 1100, 1101):
        fields = {field["name"] for field in lsst_schema(version)["fields"]}
        assert lsst.MARK in fields
