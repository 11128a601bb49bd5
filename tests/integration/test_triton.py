"""The real Triton server and the engine in process give the same answers; what happens when it goes away."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from broker.embedded.ports import free_port, taken
from broker.errors import ConfigurationError, DependencyUnavailableError, InferenceError
from broker.inference import Predictions, shared_memory
from broker.inference.manifest import MODELS
from broker.inference.onnx import OnnxEngine
from broker.inference.shared_memory import FOLDER
from broker.inference.triton import TritonEngine, _Request
from broker.inference.triton_client import TritonTls
from deploy.local.triton_server import TritonServer, triton_installed, triton_venv
from tests.random_models import MODEL_REPO, mixed_presence, random_inputs

INSTANCES_OF_TRIFID = 4  # model_repo/trifid/config.pbtxt


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[TritonServer]:
    if not triton_installed():
        pytest.skip(f"no Triton in {triton_venv()}: run `python -m deploy.local.triton_server setup`")
    with TritonServer(repository) as server:
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


def test_answers_belong_to_their_requests_where_the_server_batches_them(
    triton: TritonEngine, onnx: OnnxEngine, server: TritonServer
) -> None:
    batches = [random_inputs(mixed_presence(1 + n % 5, seed=n), seed=n) for n in range(24)]
    before = _executions(server)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(triton.predict, batches))
    requests, executions = (_executions(server) - before).tolist()
    assert executions < requests  # else this test shows nothing
    for inputs, answer in zip(batches, answers, strict=True):
        _assert_same(answer, onnx.predict(inputs))


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
    assert _mapped(server).isdisjoint(region.name for region in regions)


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
                engine._answers([_Request("trifid", "", {**tensors, **more})])


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
            assert left in _mapped(server)
        process.kill()
        process.wait()
    assert (FOLDER / left).exists()
    with closing(TritonEngine(server.grpc_url, repository)) as engine:
        engine.predict(random_inputs(np.ones((4, 3), bool)))
    assert not (FOLDER / left).exists()
    assert left not in _mapped(server)


def _forget_shared_memory(engine: TritonEngine) -> None:
    """As a server that was started anew. Triton refuses for a moment after an answer, while it still holds a region."""
    end = time.monotonic() + 30
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
    deadline = time.monotonic() + 60
    while not _ready(engine):  # the channel pauses between its attempts to connect
        assert time.monotonic() < deadline
        time.sleep(0.05)
    _assert_same(engine.predict(inputs), expected)
    engine.close()
    with pytest.raises(InferenceError, match="closed"):
        engine.predict(inputs)


def test_a_slow_server_is_abandoned(server: TritonServer, repository: Path) -> None:
    engine = TritonEngine(server.grpc_url, repository, timeout=5, retries=0)
    engine.predict(random_inputs(np.ones((1, 3), bool)))
    engine._timeout = 1e-3
    with pytest.raises(DependencyUnavailableError, match=r"(?i)deadline"):
        engine.predict(random_inputs(np.ones((500, 3), bool)))
    engine.close()


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


def _mapped(server: TritonServer) -> set[str]:
    """Names of the clients' shared memory that the server has mapped."""
    with urllib.request.urlopen(f"{server.http_url}/v2/systemsharedmemory/status") as response:
        return {region["name"] for region in json.load(response)}


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


def _wait_until(true: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.skipif(not triton_installed(), reason="no Triton: run `python -m deploy.local.triton_server setup`")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_serve_has_the_ports_that_it_is_given_and_leaves_no_server_behind(number: int) -> None:
    ports = [free_port() for _ in range(3)]
    with _serve(ports) as serving:
        assert serving.stdout is not None
        assert serving.stdout.readline() == f"gRPC 127.0.0.1:{ports[1]}\n"
        assert serving.stdout.readline() == f"HTTP http://127.0.0.1:{ports[0]}\n"
        assert serving.stdout.readline() == f"metrics http://127.0.0.1:{ports[2]}/metrics\n"
        with urllib.request.urlopen(f"http://127.0.0.1:{ports[0]}/v2/health/ready", timeout=5) as response:
            assert response.status == 200
        engine = TritonEngine(f"127.0.0.1:{ports[1]}", MODEL_REPO)
        engine.check()
        engine.close()
        servers = _descendants(serving.pid)
        assert any("tritonserver" in Path(f"/proc/{pid}/cmdline").read_text() for pid in servers)
        serving.send_signal(number)
        assert serving.wait(60) == (-9 if number == signal.SIGKILL else 0)
        if number != signal.SIGKILL:
            assert serving.stdout.read() == "stopped\n"
        _wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in servers))
        assert not any(taken(port) for port in ports)


@pytest.mark.skipif(not triton_installed(), reason="no Triton: run `python -m deploy.local.triton_server setup`")
def test_serve_names_the_port_that_is_in_use() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with _serve([port, 0, 0]) as serving:
            text, _ = serving.communicate(timeout=60)
        assert serving.returncode == 1
        assert text == f"Error: port {port} of 127.0.0.1 is in use: give another with --http-port, or 0\n"
