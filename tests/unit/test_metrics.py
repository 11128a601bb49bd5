"""Series of labelled metrics before anything has happened."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from broker import metrics
from broker.anomaly.reference_set import ReferenceSet
from broker.batch import IncomingMessage, Origin
from broker.embedded.ports import free_port
from broker.inference.onnx import OnnxEngine
from broker.models.repository import REFERENCE_SET_FILE
from broker.pipeline import Pipeline
from broker.publish.messages import Publisher
from broker.publish.topics import OutputTopics
from broker.state.memory import MemoryStore
from broker.streaming.accounting import Accounting
from broker.streaming.handling import handle
from broker.surveys import SURVEYS, Decoder
from broker.surveys.simulator import simulate_alerts
from tests.random_models import MODEL_REPO
from tests.unit.test_deploy import EXPRESSIONS

_OF_WEB = "trifid_web_request_seconds"
_OF_DRIFT = {f"trifid_drift_{name}" for name in ("window_alerts", "distance", "significance", "detected")}
KNOWN_LATER = {
    "trifid_consumer_lag_alerts", *_OF_DRIFT, _OF_WEB, *(f"{_OF_WEB}_{kind}" for kind in ("bucket", "count", "sum")),
}  # fmt: skip
"""Their labels are partitions, which come with their assignment, bands, of which a survey may have any and which come
with the first hundred alerts, and routes of another process, `trifid web`."""

OF_TARGETS = {"job", "instance", "namespace", "pod"}
"""Labels that Prometheus adds."""


def scrape(port: int, process: subprocess.Popen[bytes]) -> str:
    for _ in range(3000):
        assert process.poll() is None
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as response:
                text: str = response.read().decode()
        except urllib.error.URLError:
            time.sleep(0.1)
            continue
        if "trifid_alerts_in_total{" in text:
            return text
        time.sleep(0.1)
    raise AssertionError("no metrics")


@pytest.fixture(scope="module")
def at_start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The metrics of a worker that has not reached Kafka or Redis."""
    port, nobody = free_port(), free_port()
    config = tmp_path_factory.mktemp("metrics") / "trifid.toml"
    config.write_text(
        f'[kafka]\nbootstrap_servers = "127.0.0.1:{nobody}"\n[redis]\nurl = "redis://127.0.0.1:{nobody}/0"\n'
        f'[metrics]\naddress = "127.0.0.1"\nport = {port}\n'
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "broker.cli", "run", "--config", str(config)], stderr=subprocess.DEVNULL
    )
    yield scrape(port, process)
    process.kill()
    process.wait()


def test_what_is_deployed_has_series_right_after_start(at_start: str) -> None:
    series = {sample.name for family in text_string_to_metric_families(at_start) for sample in family.samples}
    used = {name for expression in EXPRESSIONS for name in re.findall(r"trifid_\w+", expression)}
    assert len(used) > 15
    assert used - KNOWN_LATER <= series


def test_every_selector_of_rules_and_panels_finds_a_series_right_after_start(at_start: str) -> None:
    """A label or a value that is spelt wrong selects nothing, and an alarm on it never fires."""
    series: dict[str, list[dict[str, str]]] = {}
    for family in text_string_to_metric_families(at_start):
        for sample in family.samples:
            series.setdefault(sample.name, []).append(sample.labels)
    selectors = {found for e in EXPRESSIONS for found in re.findall(r"\b(trifid_\w+)\{([^}]+)\}", e)}
    assert len(selectors) > 15
    nothing = []
    for name, text in selectors:
        matchers = re.findall(r'(\w+)\s*(=~|!=|!~|=)\s*"([^"]*)"', text)
        assert text.count('"') == 2 * len(matchers), text
        if name in KNOWN_LATER:
            continue
        if not any(
            all(
                label in labels
                and (bool(re.fullmatch(value, labels[label])) if "~" in sign else value == labels[label])
                is not sign.startswith("!")
                for label, sign, value in matchers
                if label not in OF_TARGETS
            )
            for labels in series[name]
        ):
            nothing.append((name, text))
    assert not nothing


def test_each_known_value_has_a_series_of_value_0(at_start: str) -> None:
    for line in (
        'trifid_alerts_in_total{survey="lsst"} 0.0',
        'trifid_alerts_in_total{survey="unknown"} 0.0',
        'trifid_alerts_out_total{outcome="dead_lettered",survey="unknown"} 0.0',
        'trifid_alerts_out_total{outcome="not_classified",survey="elasticc"} 0.0',
        'trifid_classified_total{class_name="HADS"} 0.0',
        'trifid_spectra_total{outcome="dead_lettered"} 0.0',
        'trifid_known_objects_total{catalogue="vsx",disagrees="parent"} 0.0',
        'trifid_stage_seconds_count{stage="deliver"} 0.0',
        'trifid_dependency_waits_total{dependency="registry"} 0.0',
        'trifid_points_left_out_total{reason="flagged",survey="ztf"} 0.0',
    ):
        assert line in at_start


def labels() -> dict[str, set[tuple[tuple[str, str], ...]]]:
    found: dict[str, set[tuple[tuple[str, str], ...]]] = {}
    for family in REGISTRY.collect():
        for sample in family.samples:
            known = {name: value for name, value in sample.labels.items() if name != "le"}
            if family.name.startswith("trifid_") and known and sample.name not in KNOWN_LATER:
                found.setdefault(family.name, set()).add(tuple(sorted(known.items())))
    return found


def test_nothing_that_happens_brings_other_values() -> None:
    metrics.initialise(SURVEYS, ["alerts.ztf"])
    before = labels()
    labelled = {m for m in vars(metrics).values() if getattr(m, "_labelnames", None)}
    assert {f"{m._name}" for m in labelled} - KNOWN_LATER - {"trifid_check_failed"} <= set(before)
    payloads = [a.payload for a in simulate_alerts(20, 20, seed=5)]
    messages = [
        IncomingMessage(payload, 61000.0, Origin("t", 0, n, 0))
        for n, payload in enumerate([*payloads, b"no alert", payloads[0][:-30]])
    ]
    engine = OnnxEngine(MODEL_REPO)
    reference = ReferenceSet.load_npz(MODEL_REPO / REFERENCE_SET_FILE)
    pipeline = Pipeline(Decoder(), MemoryStore(), engine, engine.manifest, reference)
    result, _ = handle(pipeline.process, Publisher(OutputTopics("trifid", 0.9), "Trifid", 1000), messages)
    Accounting().add(result, len(messages), 1)
    engine.close()
    after = labels()
    assert sum(result.alerts_in.values()) == len(messages)
    for name in before.keys() | after.keys():
        if name != "trifid_check_failed":  # another test's checks
            assert after[name] <= before[name], name


def stage_values(stage: str) -> tuple[float, float]:
    """CPU and wall-clock seconds of a stage so far."""
    cpu = REGISTRY.get_sample_value("trifid_stage_cpu_seconds_total", {"stage": stage})
    wall = REGISTRY.get_sample_value("trifid_stage_seconds_sum", {"stage": stage})
    return cpu or 0.0, wall or 0.0


def test_a_stage_counts_the_cpu_of_its_thread_and_not_its_waiting() -> None:
    cpu, wall = stage_values("score")
    with metrics.stage_timer("score"):
        time.sleep(0.2)
        end = time.thread_time() + 0.02
        while time.thread_time() < end:
            pass
    cpu, wall = (now - before for now, before in zip(stage_values("score"), (cpu, wall), strict=True))
    assert cpu >= 0.02
    # What it slept is in the one and not in the other; the thread's clock cannot run ahead of the wall's.
    assert wall - cpu >= 0.19


def test_a_stage_that_fails_is_counted_as_well() -> None:
    cpu, _ = stage_values("infer")

    def fail() -> None:
        with metrics.stage_timer("infer"):
            end = time.thread_time() + 0.02
            while time.thread_time() < end:
                pass
            raise ValueError("away")

    with pytest.raises(ValueError, match="away"):
        fail()
    assert stage_values("infer")[0] - cpu >= 0.02
