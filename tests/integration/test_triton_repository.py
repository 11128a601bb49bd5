"""What ``model_repo``'s configurations make of a real Triton: warm-up, full queues, explicit control, no silent CPU."""

from __future__ import annotations

import re
import shutil
import sysconfig
import urllib.request
import venv
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from pathlib import Path

import numpy as np
import pytest
from tritonclient import grpc as tritongrpc

from broker.config import Settings
from broker.embedded.redis import RedisServer
from broker.errors import ConfigurationError, DependencyUnavailableError
from broker.inference.manifest import MODELS
from broker.inference.onnx import OnnxEngine
from broker.inference.triton import TritonEngine
from broker.streaming.worker import worker
from deploy.local.triton_server import TritonServer, triton_installed, triton_venv
from tests.integration.triton_memory import mapped
from tests.integration.triton_statistics import answered
from tests.random_models import MODEL_REPO, build_random_repository, mixed_presence, random_inputs
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(
    not triton_installed(), reason="no Triton: run `python -m deploy.local.triton_server setup`"
)


def edit(repository: Path, model: str, *changes: tuple[str, str]) -> None:
    path = repository / model / "config.pbtxt"
    text = path.read_text()
    for old, new in changes:
        assert text.count(old) == 1
        text = text.replace(old, new)
    path.write_text(text)


@pytest.mark.parametrize("in_flight", [1, 4])
def test_overload_is_answered_with_pauses_and_loses_nothing(tmp_path: Path, in_flight: int) -> None:
    repository = build_random_repository(tmp_path)
    edit(repository, "trifid", ("count: 4", "count: 1"), ("max_queue_size: 256", "max_queue_size: 1"))
    inputs = [random_inputs(np.ones((200, 3), bool), seed=seed) for seed in range(12)]
    with TritonServer(repository) as server, closing(OnnxEngine(repository)) as onnx:
        expected = [onnx.predict(batch).probabilities for batch in inputs]

        def predict(engine: TritonEngine) -> Callable[[int], int]:
            def one(number: int) -> int:
                try:
                    got = engine.predict(inputs[number]).probabilities
                except DependencyUnavailableError as error:
                    assert "Exceeds maximum queue size" in str(error)  # noqa: PT017, one of many in threads
                    return 0
                np.testing.assert_allclose(got, expected[number], atol=1e-4, rtol=0)
                return 1

            return one

        def engine_of(retries: int) -> TritonEngine:
            # Regions of requests that time out, as on a busy machine they may after 10 s, stay mapped.
            return TritonEngine(
                server.grpc_url, repository, retries=retries, requests_in_flight=in_flight, timeout=120.0
            )

        with closing(engine_of(0)) as engine, ThreadPoolExecutor(12) as pool:
            engine.embedding_width()
            answered = sum(pool.map(predict(engine), range(12)))
            # Else the queue is not full, and the test shows nothing; of a batch in parts one that is refused is enough.
            assert (in_flight == 1) <= answered < 12
            assert 1 <= len(mapped(server)) <= 12 * in_flight  # what was refused is used again
        # What was cancelled the server may be reading yet: the next engine has it unmapped.
        assert in_flight > 1 or mapped(server) == set()
        with closing(engine_of(9)) as engine, ThreadPoolExecutor(12) as pool:
            engine.embedding_width()
            assert sum(pool.map(predict(engine), range(12))) == 12
        assert mapped(server) == set()


def test_models_are_warm_when_ready_and_loaded_when_asked_for(tmp_path: Path) -> None:
    repository = build_random_repository(tmp_path)
    with TritonServer(repository) as server:
        # Nobody has asked yet: a batch of 256 is the warm-up of each model, and one of each instance of trifid.
        warm = {("trifid", "1"): 4} | {(model, "1"): 256 for model in MODELS}
        wait_until(lambda: answered(server) == warm)
        client = tritongrpc.InferenceServerClient(server.grpc_url)
        for model in MODELS:
            shutil.copytree(repository / model / "1", repository / model / "2")
        assert not client.is_model_ready("classifier", "2")
        for model in MODELS:
            client.load_model(model)
            assert client.is_model_ready(model, "1")  # the two latest versions
            assert client.is_model_ready(model, "2")
        before = answered(server)
        with closing(TritonEngine(server.grpc_url, repository)) as engine:
            engine.predict(random_inputs(np.ones((2, 3), bool)))
        # Triton counts an answer after it has sent it.
        once = {(model, "1"): 1 for model in MODELS}
        wait_until(lambda: _since(server, before) == once)


def test_alarms_and_panels_are_of_metrics_that_triton_has(tmp_path: Path) -> None:
    deploy = Path(__file__).resolve().parents[2] / "deploy"
    texts = [path.read_text() for path in (deploy / "prometheus/rules.yml", deploy / "grafana/dashboards/triton.json")]
    # Those of a GPU are not there on a machine that has none.
    used = {name for text in texts for name in re.findall(r"nv_\w+", text) if not name.startswith("nv_gpu_")}
    with TritonServer(build_random_repository(tmp_path)) as server:
        with closing(TritonEngine(server.grpc_url, tmp_path)) as engine:
            engine.predict(random_inputs(np.ones((2, 3), bool)))
        with urllib.request.urlopen(server.metrics_url) as response:
            lines = response.read().decode().splitlines()
    assert len(used) >= 6
    assert used <= {line.split("{")[0] for line in lines if not line.startswith("#")}
    assert any('nv_inference_request_summary_us{model="trifid",version="1",quantile="0.99"}' in line for line in lines)
    assert any('nv_inference_request_failure{model="trifid",reason="REJECTED"' in line for line in lines)


def _since(server: TritonServer, before: dict[tuple[str, str], int]) -> dict[tuple[str, str], int]:
    """Answers of each model but the gateway."""
    more = {model: count - before[model] for model, count in answered(server).items()}
    return {model: count for model, count in more.items() if count and model[0] != "trifid"}


@pytest.fixture
def only_pytorch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The local Triton as where Python has PyTorch and no ONNX Runtime: an environment of links to what is there."""
    packages = Path(sysconfig.get_path("purelib"))
    if not (packages / "torch").exists():
        pytest.skip("no PyTorch: pip install 'trifid[training]'")
    venv.create(tmp_path / "venv", with_pip=False)
    own = next((tmp_path / "venv" / "lib").glob("python3*/site-packages"))
    there = next((triton_venv() / "lib").glob("python3*/site-packages"))
    for name in ("pytriton", "nvidia_pytriton.libs", "trifid-backends"):
        (own / name).symlink_to((there / name).resolve())
    for path in packages.iterdir():
        if not path.name.startswith(("onnxruntime", "pytriton", "nvidia_pytriton")) and path.suffix != ".pth":
            (own / path.name).symlink_to(path)
    monkeypatch.setenv("TRIFID_TRITON_VENV", str(tmp_path / "venv"))


@pytest.mark.usefixtures("only_pytorch")
def test_where_there_is_only_pytorch_programs_of_the_same_weights_answer(tmp_path: Path) -> None:
    from deploy.local import torch_programs

    repository = Path(shutil.copytree(MODEL_REPO, tmp_path / "repository"))
    server = TritonServer(repository)
    with pytest.raises(ConfigurationError, match=r"neither onnxruntime nor .*model\.pt2 is there"):
        server.start()
    for path in repository.glob("*/*/model.onnx"):
        assert torch_programs.export(path) <= torch_programs.TOLERANCE
    with (
        server,
        closing(OnnxEngine(repository)) as onnx,
        closing(TritonEngine(server.grpc_url, repository, timeout=60, requests_in_flight=4)) as engine,
    ):
        for objects in (1, 7, 150):
            inputs = random_inputs(mixed_presence(objects, seed=objects), seed=objects)
            got, expected = engine.predict(inputs), onnx.predict(inputs)
            # Spectra of noise about zero, which are divided by their median, magnify what rounding leaves.
            np.testing.assert_allclose(got.probabilities, expected.probabilities, atol=5e-4, rtol=0)
            np.testing.assert_allclose(got.embeddings, expected.embeddings, atol=5e-4, rtol=0)
            np.testing.assert_allclose(got.other, expected.other, atol=5e-4, rtol=0)


def test_a_model_for_a_gpu_is_not_served_from_the_cpu(tmp_path: Path) -> None:
    repository = build_random_repository(tmp_path)
    edit(repository, "classifier", ("KIND_AUTO", "KIND_GPU"))
    server = TritonServer(repository)
    with pytest.raises(ConfigurationError, match="classifier has kind KIND_GPU but no GPUs are available"):
        server.start()


@pytest.mark.parametrize("engine", ["onnx", "triton"])
def test_a_worker_that_is_to_use_a_gpu_does_not_start_on_a_cpu(tmp_path: Path, engine: str) -> None:
    repository = build_random_repository(tmp_path)
    with RedisServer() as redis, TritonServer(repository) if engine == "triton" else nullcontext() as server:
        settings = Settings.model_validate(
            {
                "redis": {"url": redis.url},
                "triton": {"url": server.grpc_url if server else "127.0.0.1:1"},
                "inference": {"engine": engine, "device": "gpu", "model_repository": str(repository)},
            }
        )
        where = "classifier on KIND_CPU" if engine == "triton" else "classifier on CPUExecutionProvider"
        with (
            worker(settings) as service,
            pytest.raises(ConfigurationError, match=f"runs on cpu, inference.device asks for gpu .*{where}"),
        ):
            service._prepare()
