"""The real Triton server and the engine in process give the same answers; what happens when it goes away."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from broker.anomaly.reference_set import ReferenceSet
from broker.assemble import assemble_with_searches
from broker.batch import IncomingMessage, Origin
from broker.embedded.ports import free_port, taken
from broker.embedded.process import temporary_folder
from broker.errors import ConfigurationError, DependencyUnavailableError, InferenceError
from broker.inference import Predictions, shared_memory
from broker.inference.encode import to_models
from broker.inference.manifest import MODELS
from broker.inference.onnx import OnnxEngine
from broker.inference.shared_memory import FOLDER
from broker.inference.triton import LEAST, TritonEngine
from broker.inference.triton_client import TritonTls
from broker.inference.triton_requests import Request, Sent
from broker.models.repository import REFERENCE_SET_FILE
from broker.pipeline import Pipeline
from broker.records import ObjectState
from broker.state.memory import MemoryStore
from broker.surveys import Decoder
from broker.surveys.simulator import simulate_alerts
from deploy.local.triton_server import TritonServer, triton_installed, triton_venv
from tests.integration.triton_memory import mapped
from tests.random_models import MODEL_REPO, mixed_presence, random_inputs
from tests.waiting import wait_until

INSTANCES_OF_TRIFID = 4  # model_repo/trifid/config.pbtxt


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[TritonServer]:
    if not triton_installed():
        pytest.skip(f"no Triton in {triton_venv()}: run `python -m deploy.local.triton_server setup`")
    # The gateway as in NVIDIA's container; that of the local server: test_triton_in_process.py.
    with TritonServer(repository, in_process=False) as server:
        yield server


@pytest.fixture(scope="module")
def triton(server: TritonServer, repository: Path) -> Iterator[TritonEngine]:
    with closing(TritonEngine(server.grpc_url, repository)) as engine:
        yield engine


@pytest.fixture(scope="module")
def onnx(repository: Path) -> Iterator[OnnxEngine]:
    engine = OnnxEngine(repository)
    yield engine
    engine.close()


def _assert_same(got: Predictions, expected: Predictions) -> None:
    np.testing.assert_allclose(got.probabilities, expected.probabilities, atol=1e-4, rtol=0)
    np.testing.assert_allclose(got.embeddings, expected.embeddings, atol=1e-4, rtol=0)
    np.testing.assert_allclose(got.other, expected.other, atol=1e-4, rtol=0)


def _ready(engine: TritonEngine) -> bool:
    try:
        engine.check()
    except DependencyUnavailableError:
        return False
    return True


@pytest.mark.parametrize("shared_memory", [True, False])
@pytest.mark.parametrize("one_request", [True, False])
def test_gives_what_onnx_runtime_gives_in_process(
    server: TritonServer, repository: Path, onnx: OnnxEngine, one_request: bool, shared_memory: bool
) -> None:
    with closing(
        TritonEngine(server.grpc_url, repository, one_request=one_request, shared_memory=shared_memory)
    ) as engine:
        for batch in (1, 7, 40):
            present = mixed_presence(batch, seed=batch)
            inputs = random_inputs(present, seed=batch)
            expected = onnx.predict(inputs)
            _assert_same(engine.predict(inputs), expected)
            np.testing.assert_array_equal(expected.probabilities.any(axis=1), present.any(axis=1))
        assert engine.model_version == onnx.model_version
        engine.check()
        assert shared_memory == (engine._shared is not None and engine._shared.used)


@pytest.mark.parametrize("one_request", [True, False])
def test_embeddings_by_modality_are_those_that_the_fused_one_is_the_mean_of(
    server: TritonServer, repository: Path, onnx: OnnxEngine, one_request: bool
) -> None:
    """By default one request does not bring them; what is absent is zero, and what is there alone is the fused one."""
    present = mixed_presence(13, seed=3)
    inputs = random_inputs(present, seed=3)
    expected = onnx.predict(inputs).by_modality
    assert expected is not None
    np.testing.assert_array_equal(expected.any(axis=2), present)
    with closing(TritonEngine(server.grpc_url, repository, one_request=one_request, by_modality=True)) as engine:
        found = engine.predict(inputs)
    assert found.by_modality is not None
    np.testing.assert_allclose(found.by_modality, expected, atol=1e-4, rtol=0)
    alone = np.flatnonzero(present.sum(axis=1) == 1)
    np.testing.assert_allclose(found.by_modality[alone].sum(axis=1), found.embeddings[alone], atol=1e-4)
    if one_request:
        with closing(TritonEngine(server.grpc_url, repository)) as engine:
            assert engine.predict(inputs).by_modality is None


def test_the_servers_log_has_no_traceback_for_each_tensor(server: TritonServer, repository: Path) -> None:
    """The stub's name for a tensor that it has taken made numpy write one for each, 1,536 for the warm-up alone."""
    with closing(TritonEngine(server.grpc_url, repository, by_modality=True)) as engine:
        engine.predict(random_inputs(mixed_presence(13, seed=3), seed=3))
        engine.predict(random_inputs(np.ones((5, 3), bool)))
    log = server.log.read_text()
    assert "successfully loaded 'trifid'" in log
    assert "PyCapsule" not in log


def test_answers_belong_to_their_requests_where_the_server_batches_them(
    triton: TritonEngine, onnx: OnnxEngine, server: TritonServer
) -> None:
    batches = [random_inputs(mixed_presence(1 + n % 5, seed=n), seed=n) for n in range(24)]
    expected = [onnx.predict(inputs) for inputs in batches]
    before = _executions(server)
    for _ in range(50):
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(triton.predict, batches))
        for answer, right in zip(answers, expected, strict=True):
            _assert_same(answer, right)
        requests, executions = (_executions(server) - before).tolist()
        if executions < requests:  # on a busy machine one comes after the other for a while
            return
    pytest.fail("no two requests were batched: this test shows nothing")


ENCODERS = ("light_curve_encoder", "spectrum_encoder", "metadata_encoder")


@pytest.mark.parametrize("columns", [(0,), (1,), (2,), (0, 2), (0, 1, 2)])
def test_a_batch_is_one_request_and_runs_only_the_encoders_of_modalities_that_are_there(
    server: TritonServer, repository: Path, columns: tuple[int, ...]
) -> None:
    present = np.zeros((16, 3), bool)
    present[:, columns] = True
    with closing(TritonEngine(server.grpc_url, repository)) as engine:
        engine.check()
        before = _settled_requests(server)
        engine.predict(random_inputs(present))
        runs = {"trifid": 1, "classifier": 1, **{name: int(n in columns) for n, name in enumerate(ENCODERS)}}
        assert _settled_requests(server) == {model: before[model] + n for model, n in runs.items()}


@pytest.mark.parametrize("one_request", [True, False])
def test_a_batch_above_the_servers_largest_is_two_requests(
    server: TritonServer, repository: Path, onnx: OnnxEngine, one_request: bool
) -> None:
    present = np.zeros((1030, 3), bool)
    present[:, 2] = True
    present[[5, 1027], 0] = True  # one in each request, and a spectrum in the first only
    present[100:103, 1] = True
    inputs = random_inputs(present)
    with closing(TritonEngine(server.grpc_url, repository, one_request=one_request)) as engine:
        engine.check()
        before = _settled_requests(server)
        _assert_same(engine.predict(inputs), onnx.predict(inputs))
        after = _settled_requests(server)
    light_curves = 2 if one_request else 1
    assert [after[model] - before[model] for model in ("trifid", *ENCODERS, "classifier")] == (
        [2 * one_request, light_curves, 1, 2, 2]
    )


@pytest.mark.parametrize("one_request", [True, False])
def test_answers_of_many_rows_are_not_freed_before_they_are_sent(
    server: TritonServer, repository: Path, onnx: OnnxEngine, one_request: bool
) -> None:
    with closing(TritonEngine(server.grpc_url, repository, one_request=one_request)) as engine:
        for rows in (300, 1000, 65, 700, 1024, 129):
            present = np.zeros((rows, 3), bool)
            present[:, 2] = True
            inputs = random_inputs(present, seed=rows)
            _assert_same(engine.predict(inputs), onnx.predict(inputs))


def test_several_requests_in_flight_by_one_request_each(
    server: TritonServer, repository: Path, onnx: OnnxEngine
) -> None:
    batches = [random_inputs(mixed_presence(30 + n, seed=n), seed=n) for n in range(12)]
    with closing(TritonEngine(server.grpc_url, repository)) as engine, ThreadPoolExecutor(6) as pool:
        for inputs, answer in zip(batches, pool.map(engine.predict, batches), strict=True):
            _assert_same(answer, onnx.predict(inputs))
        assert engine._shared is not None
        assert 1 < len(engine._shared._known) <= 6
        regions = {FOLDER / name for name in engine._shared._known}
        assert all(region.exists() for region in regions)
    assert not any(region.exists() for region in regions)
    assert mapped(server).isdisjoint(region.name for region in regions)


IN_FLIGHT = 4


def _free(engine: TritonEngine) -> list[str]:
    """Names of the regions that no request has."""
    assert engine._shared is not None
    return sorted(region.name for region in engine._shared._free)


def test_a_batch_in_parts_is_answered_in_its_order(
    server: TritonServer, repository: Path, onnx: OnnxEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part is one request with a region of its own; a part without any modality is none."""
    sent: list[str] = []
    send = TritonEngine.send

    def watched(engine: TritonEngine, request: Request) -> Sent:
        given = send(engine, request)
        assert given.region is not None
        sent.append(given.region.name)
        return given

    monkeypatch.setattr(TritonEngine, "send", watched)
    with closing(TritonEngine(server.grpc_url, repository, requests_in_flight=IN_FLIGHT, by_modality=True)) as engine:
        for objects, requests, nothing in ((127, 1, None), (128, 2, None), (256, 4, None), (257, 3, slice(64, 128))):
            present = mixed_presence(objects, seed=objects)
            if nothing is not None:
                present[nothing] = False
            inputs = random_inputs(present, seed=objects)
            sent.clear()
            before = _settled_requests(server)["trifid"]
            got, expected = engine.predict(inputs), onnx.predict(inputs)
            _assert_same(got, expected)
            assert got.by_modality is not None
            assert expected.by_modality is not None
            np.testing.assert_allclose(got.by_modality, expected.by_modality, atol=1e-4, rtol=0)
            assert len(set(sent)) == len(sent) == requests
            assert _settled_requests(server)["trifid"] - before == requests


def test_the_next_part_is_prepared_while_the_one_before_is_under_way(
    server: TritonServer, repository: Path, onnx: OnnxEngine
) -> None:
    batches = [random_inputs(mixed_presence(40, seed=seed), seed=seed) for seed in range(IN_FLIGHT)]
    with (
        closing(TritonEngine(server.grpc_url, repository, requests_in_flight=IN_FLIGHT)) as engine,
        ExitStack() as all_,
    ):
        begun = [all_.enter_context(engine.begin(inputs)) for inputs in batches]
        assert _free(engine) == []
        assert engine._shared is not None
        assert len(engine._shared._known) == IN_FLIGHT
        for inputs, one in reversed(list(zip(batches, begun, strict=True))):  # whatever order they are asked in
            _assert_same(one.result(), onnx.predict(inputs))
        assert len(_free(engine)) == IN_FLIGHT


def test_a_part_that_is_abandoned_leaves_its_memory_and_no_answer(
    server: TritonServer, repository: Path, onnx: OnnxEngine
) -> None:
    large = random_inputs(mixed_presence(800, seed=1), seed=1)
    with closing(TritonEngine(server.grpc_url, repository)) as engine:
        for seed in range(5):
            with suppress(_AbandonedError), engine.begin(large), engine.begin(large):
                raise _AbandonedError
            assert len(_free(engine)) == 2
            inputs = random_inputs(mixed_presence(50, seed=seed), seed=seed)
            _assert_same(engine.predict(inputs), onnx.predict(inputs))
            assert len(_free(engine)) == 2


class _AbandonedError(Exception):
    pass


def test_one_part_that_is_refused_is_the_batch_refused(
    server: TritonServer, repository: Path, onnx: OnnxEngine
) -> None:
    """The pipeline then gives its halves; the parts beside it leave nothing behind."""
    inputs = random_inputs(np.ones((40, 3), bool))
    with closing(TritonEngine(server.grpc_url, repository, requests_in_flight=IN_FLIGHT)) as engine:
        served = engine._what_is_served()
        batch = to_models(inputs, served.signatures)
        assert batch is not None
        requests = [*engine._in_one(served, batch), *engine._in_one(served, batch)]
        bad = replace(requests[0], feed={**requests[0].feed, "spectra": inputs.spectrum.spectra[:, :, :7]})
        with pytest.raises(InferenceError, match=r"spectrum_encoder: .*shape"):
            engine._answers([requests[0], bad, requests[1]])
        assert len(_free(engine)) == 3
        _assert_same(engine.predict(inputs), onnx.predict(inputs))


def test_an_alert_that_cannot_be_assembled_while_the_part_before_is_under_way(
    server: TritonServer, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It alone is a dead letter; the annotations are those of one request at a time, in the order of the alerts."""
    messages = [IncomingMessage(one.payload, 61000.0, Origin("a", 0, n, 0))
                for n, one in enumerate(simulate_alerts(18, 14, seed=3))]  # fmt: skip
    reference = ReferenceSet.load_npz(repository / REFERENCE_SET_FILE)
    poison: list[str] = []

    def assembled(states: Sequence[ObjectState], growth: float) -> Any:
        if any(state.object_id in poison for state in states):
            raise ZeroDivisionError("poison")
        return assemble_with_searches(states, growth)

    monkeypatch.setattr("broker.pipeline.assemble_with_searches", assembled)
    results = []
    for in_flight in (1, IN_FLIGHT):
        with closing(TritonEngine(server.grpc_url, repository, requests_in_flight=in_flight)) as engine:
            pipeline = Pipeline(Decoder(), MemoryStore(), engine, engine.manifest, reference)
            poison[:] = []
            results.append(pipeline.process(messages).annotations)
            assert len(results[-1]) == len(messages) > 2 * LEAST
            poison[:] = [results[-1][-1].object_id]
            result = pipeline.process(messages)
            letters = [letter.message.origin for letter in result.dead_letters]
            assert letters == [m.origin for m, a in zip(messages, results[-1], strict=True) if a.object_id in poison]
            kept = [a.alert_id for a in results[-1] if a.object_id not in poison]
            assert [a.alert_id for a in result.annotations] == kept
            assert engine._shared is not None
            assert set(_free(engine)) == engine._shared._known
    assert [a.alert_id for a in results[0]] == [a.alert_id for a in results[1]]
    for one, other in zip(*results, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-4)


def test_an_error_of_a_model_comes_through_the_one_request(server: TritonServer, repository: Path) -> None:
    with closing(TritonEngine(server.grpc_url, repository)) as engine:
        inputs = random_inputs(np.ones((3, 3), bool))
        tensors = {"present": inputs.present, "detections": np.ones((3, 1), np.float32)}
        spectra = inputs.spectrum.spectra
        for more, reason in (
            ({}, "3 objects have a light_curve, but points, points_mask, folded, features have"),
            ({"spectra": spectra[:2]}, "3 objects have a spectrum, but spectra have"),
            ({"spectra": spectra[:, :, :7]}, "spectrum_encoder: .*shape"),
        ):
            if more:
                tensors["present"] = np.array([[False, True, False]] * 3)
            with pytest.raises(InferenceError, match=reason):
                engine._answers([Request("trifid", "", {**tensors, **more})])


def test_what_a_killed_process_leaves_in_shared_memory_is_removed(server: TritonServer, repository: Path) -> None:
    code = (
        "import sys, time, numpy as np\nfrom pathlib import Path\n"
        "from broker.inference.triton import TritonEngine\nfrom tests.random_models import random_inputs\n"
        "engine = TritonEngine(sys.argv[1], Path(sys.argv[2]))\n"
        "engine.predict(random_inputs(np.ones((4, 3), bool)))\n"
        "print(*engine._shared._known, flush=True)\ntime.sleep(600)\n"
    )
    command = [sys.executable, "-c", code, server.grpc_url, str(repository)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=MODEL_REPO.parent) as process:
        assert process.stdout is not None
        (left,) = process.stdout.readline().split()
        with closing(TritonEngine(server.grpc_url, repository)) as engine:
            engine.predict(random_inputs(np.ones((4, 3), bool)))
            assert (FOLDER / left).exists()  # what a living process has is left alone
            assert left in mapped(server)
        process.kill()
        process.wait()
    assert (FOLDER / left).exists()
    with closing(TritonEngine(server.grpc_url, repository)) as engine:
        engine.predict(random_inputs(np.ones((4, 3), bool)))
    assert not (FOLDER / left).exists()
    assert left not in mapped(server)


def _forget_shared_memory(engine: TritonEngine) -> None:
    """As a server that was started anew. Triton refuses for a moment after an answer, while it still holds a region."""
    end = time.monotonic() + 300
    while True:
        try:
            engine._client.unregister_system_shared_memory()
        except InferenceServerException:
            assert time.monotonic() < end
            time.sleep(0.05)
        else:
            return


def test_a_server_that_forgot_the_shared_memory_costs_no_batch(
    server: TritonServer, repository: Path, onnx: OnnxEngine
) -> None:
    inputs = random_inputs(mixed_presence(40))
    with closing(TritonEngine(server.grpc_url, repository, retries=0)) as engine:
        engine.predict(inputs)
        _forget_shared_memory(engine)
        for _ in range(2):
            _assert_same(engine.predict(inputs), onnx.predict(inputs))
        assert engine._shared is not None
        assert engine._shared.used


@pytest.mark.parametrize("full", [False, True])
def test_a_server_that_does_not_see_the_shared_memory_gets_messages(
    server: TritonServer,
    repository: Path,
    onnx: OnnxEngine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    full: bool,
) -> None:
    # Another folder is what /dev/shm of another host, or of another container, is to the server.
    monkeypatch.setattr(shared_memory, "FOLDER", tmp_path / "none" if full else tmp_path)
    inputs = random_inputs(mixed_presence(40))
    with closing(TritonEngine(server.grpc_url, repository)) as engine, caplog.at_level("INFO"):
        for _ in range(2):
            _assert_same(engine.predict(inputs), onnx.predict(inputs))
        assert engine._shared is not None
        assert not engine._shared.used
    said = [record.message for record in caplog.records if "not through shared memory" in record.message]
    assert len(said) == 1
    assert ("No such file" if full else "nable to open shared memory region") in said[0]
    assert not list(tmp_path.iterdir())


def test_a_batch_that_the_server_refuses(triton: TritonEngine) -> None:
    inputs = random_inputs(np.ones((1, 3), bool))
    with pytest.raises(InferenceError, match=r"points|shape"):
        triton._run_models(
            dict.fromkeys(MODELS, 0),
            {"light_curve_encoder": {"points": inputs.light_curve.points[:, :5]}},
        )


def test_goes_on_after_the_server_crashed_and_came_back(
    server: TritonServer, repository: Path, onnx: OnnxEngine
) -> None:
    engine = TritonEngine(server.grpc_url, repository, timeout=5, retries=1)
    inputs = random_inputs(mixed_presence(8))
    expected = onnx.predict(inputs)
    _assert_same(engine.predict(inputs), expected)
    regions = _shared_memory(server)
    assert len(regions) == len(MODELS) + INSTANCES_OF_TRIFID
    server.kill()
    try:
        assert not any(region.exists() for region in regions)
        assert not _ready(engine)
        for _ in range(2):  # once with a request, once with the question what is served
            with pytest.raises(DependencyUnavailableError, match=server.grpc_url):
                engine.predict(inputs)
    finally:
        server.start()
    wait_until(lambda: _ready(engine))  # the channel pauses between its attempts to connect
    _assert_same(engine.predict(inputs), expected)
    engine.close()
    with pytest.raises(InferenceError, match="closed"):
        engine.predict(inputs)


@pytest.mark.parametrize("in_flight", [1, IN_FLIGHT])
def test_a_slow_server_is_abandoned(server: TritonServer, repository: Path, onnx: OnnxEngine, in_flight: int) -> None:
    inputs = random_inputs(np.ones((500, 3), bool))
    with closing(
        TritonEngine(server.grpc_url, repository, timeout=60, retries=0, requests_in_flight=in_flight)
    ) as engine:
        engine.predict(inputs)
        engine._timeout = 1e-3
        with pytest.raises(DependencyUnavailableError, match=r"(?i)deadline"):
            engine.predict(inputs)
        engine._timeout = 60
        _assert_same(engine.predict(inputs), onnx.predict(inputs))
        assert len(_free(engine)) == in_flight


def test_a_server_of_other_models(server: TritonServer, repository: Path, tmp_path: Path) -> None:
    text = (repository / "manifest.json").read_text()
    (tmp_path / "manifest.json").write_text(text.replace("classifier/1/", "classifier/2/"))
    engine = TritonEngine(server.grpc_url, tmp_path)
    with pytest.raises(DependencyUnavailableError, match="has not loaded classifier"):
        engine.check()
    with pytest.raises(ConfigurationError, match="does not serve"):
        engine.predict(random_inputs(np.ones((1, 3), bool)))
    engine.close()


def test_a_server_that_never_was(repository: Path) -> None:
    engine = TritonEngine(f"127.0.0.1:{free_port()}", repository, retries=0)
    assert not _ready(engine)
    with pytest.raises(DependencyUnavailableError):
        engine.predict(random_inputs(np.ones((1, 3), bool)))
    engine.close()


def test_tls_file_that_does_not_exist(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"ca\.pem does not exist"):
        TritonEngine("127.0.0.1:1", repository, tls=TritonTls(root_certificates=tmp_path / "ca.pem"))


def test_a_model_that_cannot_be_loaded(tmp_path: Path) -> None:
    if not triton_installed():
        pytest.skip(f"no Triton in {triton_venv()}: run `python -m deploy.local.triton_server setup`")
    folder = tmp_path / "classifier"
    (folder / "1").mkdir(parents=True)
    shutil.copy(MODEL_REPO / "classifier/config.pbtxt", folder)
    (folder / "1/model.onnx").write_bytes(b"no model")
    server = TritonServer(tmp_path)
    with pytest.raises(ConfigurationError, match="tritonserver ended at its start"):
        server.start()
    assert not server.running


def _executions(server: TritonServer) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Requests and executions of all models so far, by the server's own statistics."""
    with urllib.request.urlopen(f"{server.http_url}/v2/models/stats") as response:
        models = json.load(response)["model_stats"]
    requests = sum(model["inference_stats"]["success"]["count"] for model in models)
    return np.array([requests, sum(model["execution_count"] for model in models)])


def _requests(server: TritonServer) -> dict[str, int]:
    """Requests that each model has answered so far, by the server's own statistics."""
    with urllib.request.urlopen(f"{server.http_url}/v2/models/stats") as response:
        models = json.load(response)["model_stats"]
    return {model["name"]: model["inference_stats"]["success"]["count"] for model in models}


def _settled_requests(server: TritonServer) -> dict[str, int]:
    """As ``_requests``; the server counts a request after it has answered it."""
    counts, still = _requests(server), 0
    while still < 3:
        time.sleep(0.1)
        before, counts = counts, _requests(server)
        still = still + 1 if counts == before else 0
    return counts


def _shared_memory(server: TritonServer) -> set[Path]:
    """Regions through which this Triton speaks with its backends' processes."""
    mapped = Path(f"/proc/{server.pid}/maps").read_text()
    return {region for region in Path("/dev/shm").glob("triton_*") if str(region) in mapped}


def _serve(ports: list[int]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "deploy.local.triton_server", "serve", str(MODEL_REPO)]
    for name, port in zip(("http", "grpc", "metrics"), ports, strict=True):
        command += [f"--{name}-port", str(port)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=MODEL_REPO.parent)


def _descendants(pid: int) -> set[int]:
    """Processes that a process has started, and so on."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it ended
            continue
    found, size = {pid}, 0
    while len(found) > size:
        size = len(found)
        found |= {child for child, parent in parents.items() if parent in found}
    return found - {pid}


class _FailsAtALock(TritonServer):
    """A server that ends as Triton does now and then, as often as it is told to."""

    def __init__(self, repository: Path, times: int) -> None:
        super().__init__(repository)
        self.times = times

    def _command(self) -> tuple[Sequence[str], dict[str, str]]:
        command, environment = super()._command()
        if self.times:
            self.times -= 1
            command = ["sh", "-c", "echo boost::interprocess::lock_exception; exit 134"]
        return command, environment


@pytest.mark.skipif(not triton_installed(), reason="no Triton: run `python -m deploy.local.triton_server setup`")
def test_a_server_that_fails_at_a_lock_is_started_once_more(repository: Path) -> None:
    with _FailsAtALock(repository, 1) as server, closing(TritonEngine(server.grpc_url, repository)) as engine:
        engine.check()
    with pytest.raises(ConfigurationError, match="lock_exception"):
        _FailsAtALock(repository, 3).start()


class _Owner:
    """Of a folder."""


@pytest.mark.skipif(not triton_installed(), reason="no Triton: run `python -m deploy.local.triton_server setup`")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_serve_has_the_ports_that_it_is_given_and_leaves_no_server_behind(number: int) -> None:
    ports = [free_port() for _ in range(3)]
    with _serve(ports) as serving:
        assert serving.stdout is not None
        assert serving.stdout.readline() == f"gRPC 127.0.0.1:{ports[1]}\n"
        assert serving.stdout.readline() == f"HTTP http://127.0.0.1:{ports[0]}\n"
        assert serving.stdout.readline() == f"metrics http://127.0.0.1:{ports[2]}/metrics\n"
        with urllib.request.urlopen(f"http://127.0.0.1:{ports[0]}/v2/health/ready", timeout=60) as response:
            assert response.status == 200
        engine = TritonEngine(f"127.0.0.1:{ports[1]}", MODEL_REPO)
        engine.check()
        engine.close()
        servers = _descendants(serving.pid)
        commands = [Path(f"/proc/{pid}/cmdline").read_text() for pid in servers]
        (folder,) = {Path(found) for text in commands for found in re.findall(r"--backend-directory=([^\0]+)/", text)}
        assert folder.is_dir()
        serving.send_signal(number)
        assert serving.wait(300) == (-9 if number == signal.SIGKILL else 0)
        if number != signal.SIGKILL:
            assert serving.stdout.read() == "stopped\n"
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in servers))
        assert not any(taken(port) for port in ports)
        # What a process that was killed could not remove, the next that starts a server does.
        temporary_folder(_Owner(), "trifid-triton-")
        assert not folder.exists()


@pytest.mark.skipif(not triton_installed(), reason="no Triton: run `python -m deploy.local.triton_server setup`")
def test_serve_names_the_port_that_is_in_use() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with _serve([port, 0, 0]) as serving:
            text, _ = serving.communicate(timeout=300)
        assert serving.returncode == 1
        assert text == f"Error: port {port} of 127.0.0.1 is in use: give another with --http-port, or 0\n"
