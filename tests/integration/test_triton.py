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
from pathlib import Path

import numpy as np
import pytest

from broker.embedded.ports import free_port, taken
from broker.errors import ConfigurationError, DependencyUnavailableError, InferenceError
from broker.inference import Predictions
from broker.inference.manifest import MODELS
from broker.inference.onnx import OnnxEngine
from broker.inference.triton import TritonEngine, TritonTls
from deploy.local.triton_server import TritonServer, triton_installed, triton_venv
from tests.random_models import MODEL_REPO, mixed_presence, random_inputs


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[TritonServer]:
    if not triton_installed():
        pytest.skip(f"no Triton in {triton_venv()}: run `python -m deploy.local.triton_server setup`")
    with TritonServer(repository) as server:
        yield server


@pytest.fixture(scope="module")
def triton(server: TritonServer, repository: Path) -> Iterator[TritonEngine]:
    engine = TritonEngine(server.grpc_url, repository)
    yield engine
    engine.close()


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


@pytest.mark.parametrize("batch", [1, 7, 600])  # 600 is above the server's max_batch_size
def test_gives_what_onnx_runtime_gives_in_process(triton: TritonEngine, onnx: OnnxEngine, batch: int) -> None:
    present = mixed_presence(batch, seed=batch)
    inputs = random_inputs(present, seed=batch)
    expected = onnx.predict(inputs)
    _assert_same(triton.predict(inputs), expected)
    np.testing.assert_array_equal(expected.probabilities.any(axis=1), present.any(axis=1))
    assert triton.model_version == onnx.model_version
    triton.check()


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
    shared_memory = _shared_memory(server)
    assert len(shared_memory) == len(MODELS)
    server.kill()
    try:
        assert not any(region.exists() for region in shared_memory)
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
