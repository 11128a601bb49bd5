"""The arithmetic of ``benchmarks/stream.py``: which alerts are sent, what is counted, and what is made of it."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import click
import fastavro
import numpy as np
import pytest

from benchmarks import stream
from benchmarks.workload import measures, report
from benchmarks.workload.packets import (
    ARCHIVES,
    Kind,
    Template,
    Visits,
    _template,
    candid_of,
    leaves,
    mix_of,
    sequence_of,
    templates,
)
from benchmarks.workload.stars import Curves, Sky, Stream, object_name
from broker.avro.container import read_blocks, read_header, write_long
from broker.records import Alert, PhotometryKind
from broker.sources import iter_packets
from broker.surveys import Decoder
from broker.surveys.simulator import simulate_alerts
from broker.times import jd_of_mjd, mjd_of_jd


@pytest.fixture(scope="module")
def payload() -> bytes:
    """A packet with earlier detections, upper limits and forced photometry."""
    for alert in simulate_alerts(5, 40, seed=3):
        record = next(fastavro.reader(io.BytesIO(alert.payload)))
        before = record["prv_candidates"] or []
        detected = sum(row["magpsf"] is not None for row in before)
        if detected >= 2 and detected < len(before):
            return alert.payload
    raise AssertionError("no such packet")


@pytest.fixture(scope="module")
def template(payload: bytes) -> Template:
    found = _template(payload, Kind.REPEAT)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def curves() -> Curves:
    """Three stars of 30, 50 and 12 points."""
    rng = np.random.default_rng(1)
    start = np.cumsum([0, 30, 50, 12])
    mjd = np.concatenate([53_000.0 + np.sort(rng.uniform(0, 900, n)) for n in np.diff(start)])
    flux = rng.uniform(1e6, 2e6, len(mjd))
    return Curves(start.astype(np.intp), mjd, flux, 0.02 * flux)


def decoded(message: bytes | bytearray) -> Alert:
    (alerts,) = Decoder().decode_batch([bytes(message)])
    assert not isinstance(alerts, Exception)
    (alert,) = alerts
    assert isinstance(alert, Alert)
    return alert


def test_values_are_found_where_fastavro_reads_them(payload: bytes) -> None:
    record = next(fastavro.reader(io.BytesIO(payload)))
    header = read_header(payload)
    (block,) = read_blocks(payload, header)
    found = list(leaves(json.loads(header.schema_json), block.data, block.start))
    assert found[-1].end == block.end  # nothing was stepped over wrongly

    def value(leaf: Any) -> Any:
        data = block.data[leaf.start : leaf.end]
        return {"double": lambda: struct.unpack("<d", data)[0], "string": data.decode, "null": lambda: None}[
            leaf.kind
        ]()

    by_path = {(leaf.path, leaf.item): leaf for leaf in found}
    assert value(by_path["objectId", 0]) == record["objectId"]
    assert value(by_path["candidate.jd", 0]) == record["candidate"]["jd"]
    for number, row in enumerate(record["prv_candidates"]):
        assert value(by_path["prv_candidates[].jd", number]) == row["jd"]
        assert value(by_path["prv_candidates[].isdiffpos", number]) == row["isdiffpos"]
    for number, row in enumerate(record["fp_hists"]):
        assert value(by_path["fp_hists[].jd", number]) == row["jd"]


@pytest.mark.parametrize("size", [8, 9])
@pytest.mark.parametrize("sequence", [0, 1, 123_456_789])
def test_numbers_of_alerts_come_back_from_candids_of_the_same_length(size: int, sequence: int) -> None:
    candid = candid_of(sequence, size)
    assert len(write_long(candid)) == size
    assert sequence_of(candid) == sequence


def test_an_alert_of_another_object_differs_in_name_number_and_place_only(payload: bytes, template: Template) -> None:
    before, after = decoded(payload), decoded(template.alert("ZTF26aaaaaab", 77, 123.25, -45.5))
    assert (after.object_id, after.ra, after.dec) == ("ZTF26aaaaaab", 123.25, -45.5)
    assert sequence_of(after.alert_id) == 77
    assert after.mjd == before.mjd
    for column in ("mjd", "flux", "flux_error", "reference_flux", "band", "kind"):
        np.testing.assert_array_equal(getattr(after.light_curve, column), getattr(before.light_curve, column))
    assert len(template.alert("ZTF26aaaaaab", 77, 123.25, -45.5)) == len(payload)


def test_a_repeat_carries_the_stars_own_points(payload: bytes, template: Template) -> None:
    count = template.detections
    visits = Visits(
        61_000.0 - 3.0 * np.arange(count),
        (1 + np.arange(count) % 2).astype(np.uint8),
        2e6 + 1e5 * np.arange(count),
        1e4 + 10.0 * np.arange(count),
    )
    alert = decoded(template.repeat("ZTF17aaaaaaa", 5, 10.0, 20.0, visits, 1.5e6))
    curve = alert.light_curve
    own = curve.kind == PhotometryKind.DETECTION
    assert own.sum() == count
    # In order of time in the light curve, the latest first in the visits.
    np.testing.assert_allclose(curve.mjd[own], visits.mjd[::-1], rtol=0, atol=1e-8)
    np.testing.assert_allclose((curve.flux + curve.reference_flux)[own], visits.flux[::-1], rtol=2e-6)
    np.testing.assert_allclose(curve.reference_flux[own], 1.5e6, rtol=1e-6)
    np.testing.assert_allclose(curve.flux_error[own], visits.error[::-1], rtol=1e-5)
    np.testing.assert_array_equal(curve.band[own], visits.band[::-1] - 1)  # ztf:g and ztf:r are the first of the bands
    # Upper limits are as long before the alert as they were.
    before = decoded(payload)
    for kind in (PhotometryKind.LIMIT, PhotometryKind.FORCED):
        then = before.mjd - before.light_curve.mjd[before.light_curve.kind == kind]
        now = alert.mjd - curve.mjd[curve.kind == kind]
        np.testing.assert_allclose(np.sort(now), np.sort(then), atol=1e-6)


def test_a_packet_with_a_longer_name_is_no_template(payload: bytes) -> None:
    record = next(fastavro.reader(io.BytesIO(payload)))
    schema = json.loads(read_header(payload).schema_json)
    out = io.BytesIO()
    fastavro.writer(out, schema, [record | {"objectId": "ZTF18aaaaaaaa"}])
    assert _template(out.getvalue(), Kind.NEW) is None


def test_the_mix_of_the_real_packets_is_what_they_say_of_their_objects(shared: Path) -> None:
    folder = shared / "alerts" / "ztf"
    expected: Counter[str] = Counter()
    for name in ARCHIVES:
        for packet in iter_packets([folder / name]):
            candidate = next(fastavro.reader(io.BytesIO(packet.payload)))["candidate"]
            # ssdistnr is -999 where no body is near.
            moving = candidate["ssdistnr"] is not None and 0 <= candidate["ssdistnr"] <= 5.0
            expected["moving" if moving else "new" if candidate["ndethist"] <= 1 else "repeat"] += 1
    found = templates(folder)
    assert sum(expected.values()) == 1091
    assert Counter(template.kind for template in found) == expected


def test_what_is_known_and_what_comes_are_one_real_light_curve(curves: Curves) -> None:
    sky = Sky(curves, objects=4, least=10, most=20, reserve=5, seed=0)
    assert sky.distinct == 2  # that of 12 points is too short
    assert sorted(sky.curve.tolist()) == [0, 0, 1, 1]
    for number in range(4):
        known = sky.known(number).light_curve
        curve = int(sky.curve[number])
        assert len(known) == 20
        begin, end = int(curves.start[curve]), int(curves.start[curve + 1])
        visits = [sky.visit(number, 3) for _ in range(5)]
        times = np.concatenate([known.mjd, [visit.mjd[0] for visit in visits]])
        np.testing.assert_allclose(np.diff(times), np.diff(curves.mjd[end - 25 : end]), atol=1e-6)
        flux = np.concatenate([known.flux + known.reference_flux, [visit.flux[0] for visit in visits]])
        np.testing.assert_allclose(flux, curves.flux[end - 25 : end], rtol=1e-6)
        assert (known.flux > 0).all()
        assert known.reference_flux[0] == pytest.approx(0.9 * curves.flux[begin:end].min())
        # Earlier points are those that the visits before brought.
        np.testing.assert_array_equal(visits[4].mjd[1:], [visits[3].mjd[0], visits[2].mjd[0]])
        np.testing.assert_array_equal(mjd_of_jd(jd_of_mjd(visits[0].mjd[1:])), known.mjd[[-1, -2]])
        with pytest.raises(IndexError, match="no point left"):
            sky.visit(number, 3)


def test_a_share_of_what_is_known_is_its_beginning(curves: Curves) -> None:
    sky = Sky(curves, objects=1, least=10, most=20, reserve=5, seed=0)
    whole, part = sky.known(0).light_curve, sky.known(0, 0.8).light_curve
    assert len(part) == 16
    np.testing.assert_array_equal(part.mjd, whole.mjd[:16])


def test_a_packets_earlier_detections_are_what_is_known_to_the_last_bit(curves: Curves, template: Template) -> None:
    """Else each alert would change points of the light curve, and the period be searched anew."""
    sky = Sky(curves, objects=4, least=10, most=20, reserve=5, seed=0)
    for number in range(4):
        known = sky.known(number).light_curve
        visits = sky.visit(number, template.detections)
        ra, dec = float(sky.ra[number]), float(sky.dec[number])
        packet = template.repeat("ZTF17aaaaaaa", number, ra, dec, visits, float(sky.reference[number]))
        sent = decoded(packet).light_curve
        detected = sent.take(np.flatnonzero(sent.kind == PhotometryKind.DETECTION))
        own = detected.take(np.argsort(detected.mjd))
        assert len(own) == template.detections >= 3
        for column in ("mjd", "flux", "flux_error", "reference_flux", "band"):
            earlier = getattr(own, column)[:-1]
            np.testing.assert_array_equal(earlier, getattr(known, column)[-len(earlier) :])
            assert earlier.dtype == getattr(known, column).dtype


def test_stars_that_are_too_short_are_refused(curves: Curves) -> None:
    with pytest.raises(ValueError, match="no light curve has 48 points and 5 more"):
        Sky(curves, objects=1, least=48, most=100, reserve=5, seed=0)


def test_the_mix_is_exact_and_repeats_go_round_all_stars(curves: Curves, template: Template) -> None:
    sky = Sky(curves, objects=7, least=10, most=20, reserve=3, seed=0)
    every = [template, *(_of_kind(template, kind) for kind in (Kind.NEW, Kind.MOVING))]
    alerts = Stream(sky, every, seed=0)
    kinds = alerts.kinds({Kind.NEW: 0.2, Kind.REPEAT: 0.7, Kind.MOVING: 0.1}, 20)
    assert Counter(kinds) == {Kind.NEW: 4, Kind.REPEAT: 14, Kind.MOVING: 2}
    sent = [decoded(alerts.next(kind)) for kind in kinds]
    assert [sequence_of(alert.alert_id) for alert in sent] == list(range(20))
    names = [alert.object_id for alert, kind in zip(sent, kinds, strict=True) if kind is Kind.REPEAT]
    assert sorted(names[:7]) == sorted(names[7:]) == [object_name("ZTF17", number) for number in range(7)]
    others = [alert.object_id for alert, kind in zip(sent, kinds, strict=True) if kind is not Kind.REPEAT]
    assert len(set(others)) == 6
    assert not set(others) & set(names)
    assert mix_of(alerts.sent) == {Kind.NEW: 0.2, Kind.REPEAT: 0.7, Kind.MOVING: 0.1}


def _of_kind(template: Template, kind: Kind) -> Template:
    return Template(**{name: getattr(template, name) for name in template.__slots__} | {"kind": kind})


@pytest.mark.parametrize("count", [1, 2, 3, 10, 999])
def test_shares_that_are_no_whole_numbers_still_sum_up(curves: Curves, template: Template, count: int) -> None:
    alerts = Stream(Sky(curves, 2, 10, 20, 3, 0), [template], seed=0)
    assert len(alerts.kinds({Kind.NEW: 1 / 3, Kind.REPEAT: 1 / 3, Kind.MOVING: 1 / 3}, count)) == count


def test_percentiles_are_values_that_occurred_and_the_higher_of_two() -> None:
    # Of 1 to 100 half are at most 50: the rank between 50 and 51 is given as 51, and so on.
    found = measures.latencies(np.arange(100.0, 0.0, -1.0))
    assert found == {"p50": 51.0, "p95": 96.0, "p99": 100.0, "max": 100.0}
    assert measures.latencies(np.array([2.5])) == {"p50": 2.5, "p95": 2.5, "p99": 2.5, "max": 2.5}


@pytest.mark.parametrize("values", [[], [1.0, float("nan")]])
def test_latencies_that_are_missing_are_no_figure(values: list[float]) -> None:
    with pytest.raises(ValueError, match="missing"):
        measures.latencies(np.array(values))


def test_counts_that_reconcile_pass() -> None:
    measures.Counts(5, 3, 1, 1).check(5, np.array([4, 0, 1, 3]), dead_letters=1)


@pytest.mark.parametrize(
    ("counts", "annotations", "dead_letters", "reason"),
    [
        ((4, 3, 1, 0), [0, 1, 2, 3], 0, "5 alerts were sent, 4 taken"),
        ((5, 3, 1, 0), [0, 1, 2, 3], 0, "5 in are not 3 classified"),
        ((5, 4, 1, 0), [0, 1, 2, 3], 0, "4 annotations read of 5"),
        ((5, 3, 1, 1), [0, 1, 2, 3], 0, "0 dead letters read of 1"),
        ((5, 4, 1, 0), [0, 1, 2, 3, 3], 0, "1 alerts annotated more than once"),
        ((5, 4, 1, 0), [0, 1, 2, 3, 5], 0, "annotations of alerts that were not sent"),
        ((5, 4, 1, 0), [-1, 1, 2, 3, 4], 0, "annotations of alerts that were not sent"),
    ],
)
def test_counts_that_do_not_reconcile_fail(
    counts: tuple[int, int, int, int], annotations: list[int], dead_letters: int, reason: str
) -> None:
    with pytest.raises(AssertionError, match=reason):
        measures.Counts(*counts).check(5, np.array(annotations), dead_letters)


def test_at_least_once_may_annotate_an_alert_again_and_miss_none() -> None:
    counts = measures.Counts(5, 4, 1, 0)
    counts.check(5, np.array([0, 1, 2, 3, 4, 4]), 0, exactly_once=False)
    with pytest.raises(AssertionError, match="4 annotations read of 5"):
        counts.check(5, np.array([0, 1, 2, 3, 3]), 0, exactly_once=False)


METRICS = """
# TYPE trifid_alerts_in counter
trifid_alerts_in_total{survey="ztf"} 10
trifid_alerts_in_total{survey="unknown"} 1
# TYPE trifid_alerts_out counter
trifid_alerts_out_total{outcome="classified",survey="ztf"} 6
trifid_alerts_out_total{outcome="not_classified",survey="ztf"} 3
trifid_alerts_out_total{outcome="dead_lettered",survey="ztf"} 1
trifid_alerts_out_total{outcome="dead_lettered",survey="unknown"} 1
"""


def test_counts_are_the_sum_over_workers_and_surveys_since_the_start() -> None:
    one = measures.parse(METRICS)
    two = measures.difference(measures.add([one, one]), one)
    assert measures.Counts.of(two) == measures.Counts(11, 6, 3, 2)
    assert measures.by_label(two, "trifid_alerts_in_total", "survey") == {"ztf": 10.0, "unknown": 1.0}
    assert measures.Counts.of(measures.add([one, one])) == measures.Counts(22, 12, 6, 4)


def test_cpu_time_of_a_child_counts_in_its_tree_and_not_in_its_parent() -> None:
    # The child says when it has used 0.3 s of CPU, and lives on.
    code = "import sys, time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\nsys.stdin.read()"
    tree, own = measures.tree_seconds(os.getpid()), measures.cpu_seconds(os.getpid())
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        more, child_seconds = measures.tree_seconds(os.getpid()) - tree, measures.cpu_seconds(child.pid)
        mine = measures.cpu_seconds(os.getpid()) - own
        child.communicate()
    assert child_seconds >= 0.25
    assert more >= child_seconds - 0.05
    assert more == pytest.approx(mine + child_seconds, abs=0.1)


def test_core_milliseconds_an_alert_and_what_is_outside_of_stages() -> None:
    figures: dict[str, Any] = {"stages": {"decode": 1.0, "assemble": 4.0}, "cpu_seconds": 6.0, "worker_mib": [500]}
    figures["servers"] = {"Kafka": 3.0}
    found = stream.per_alert(figures, 2000)
    assert found["core_ms"] == pytest.approx(3.0)
    assert found["core_ms_by_stage"] == pytest.approx({"decode": 0.5, "assemble": 2.0})
    assert found["core_ms_outside"] == pytest.approx(0.5)
    assert found["core_ms_of_servers"] == pytest.approx({"Kafka": 1.5})


def test_mixes() -> None:
    packets = {Kind.NEW: 0.2, Kind.REPEAT: 0.5, Kind.MOVING: 0.3}
    assert stream.read_mix("packets", packets) == packets
    assert stream.read_mix("0,1,0", packets) == {Kind.NEW: 0.0, Kind.REPEAT: 1.0, Kind.MOVING: 0.0}
    for text in ("0.5,0.5", "0.5,0.6,0.1", "-0.5,1,0.5"):
        with pytest.raises(click.BadParameter, match="sum to 1"):
            stream.read_mix(text, packets)


def test_the_report_has_each_runs_own_figures() -> None:
    run = {
        "run": "closed", "alerts": 1000, "bytes_a_packet": 66_400, "alerts_a_second": 321.4, "cores_of_others": 0.5,
        "mix": {"new": 0.1, "repeat": 0.6, "moving": 0.3}, "core_ms": 3.25, "core_ms_outside": 0.25,
        "counts": {"alerts_in": 1000, "classified": 900, "not_classified": 99, "dead_lettered": 1},
        "core_ms_by_stage": {"decode": 1.0, "assemble": 2.0}, "worker_mib": [500, 600],
        "core_ms_of_servers": {"Kafka": 0.4375, "Redis": 0.125},
    }  # fmt: skip
    other = {
        **run, "run": "open", "producer_late_s": 0.01, "core_ms_by_stage": {"decode": 1.5, "assemble": 1.75},
        "latency_s": [{"part": "333/s", "alerts": 1000, "p50": 0.5, "p95": 0.6, "p99": 0.7, "max": 0.8,
                       "done_after": 9}],
    }  # fmt: skip
    state = {
        "objects": 7, "curves": 2, "points_mean": 20.0, "redis_bytes_an_object": 900.0, "redis_bytes_a_point": 45.0,
        "redis": "8.2",
    }  # fmt: skip
    machine = {"cores": 2, "cpu": "x", "memory_gib": 1.0, "python": "3.11"}
    text = report.markdown(
        {"machine": machine, "state": state, "options": {"workers": 2, "engine": "onnx"}, "command": "--workers 2",
         "runs": [run, other]}
    )  # fmt: skip
    assert "| closed | 1000 | 10 % / 60 % / 30 % | 66 | 321 | 900 | 99 | 1 | 0.50 |" in text
    assert "| 333/s | 1000 | 0.50 | 0.60 | 0.70 | 0.80 | 9.0 |" in text
    assert "| assemble | 2.000 | 1.750 |" in text
    assert text.index("| assemble |") < text.index("| decode |")  # the dearest first
    assert "| **all** | 3.250 | 3.250 |" in text
    assert "| besides: Kafka | 0.438 | 0.438 |" in text
    assert "| memory of a worker, MiB, at most | 600 | 600 |" in text
