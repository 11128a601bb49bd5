"""The local Triton's ``trifid``, which runs the models in its own process: answers are those of the version asked."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from tritonclient import grpc as tritongrpc

from broker.errors import InferenceError
from broker.inference.encode import to_models
from broker.inference.manifest import MODELS
from broker.inference.onnx import OnnxEngine
from broker.inference.triton import TritonEngine
from broker.inference.triton_client import loaded_models
from deploy.local import triton_in_process
from deploy.local.triton_server import TritonServer, triton_installed
from tests.integration.triton_statistics import answered
from tests.random_models import build_random_repository, mixed_presence, random_inputs
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(
    not triton_installed(), reason="no Triton: run `python -m deploy.local.triton_server setup`"
)
INSTANCES = 4  # model_repo/trifid/config.pbtxt; fewer on few cores


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return build_random_repository(tmp_path / "repository")


@pytest.fixture
def server(repository: Path) -> Iterator[TritonServer]:
    with TritonServer(repository) as server:
        yield server


def in_process(server: TritonServer, engine: TritonEngine, present: np.ndarray) -> None:
    """Ask until no model is called any more: each instance of ``trifid`` has loaded what it is asked for."""

    def none_is_called() -> bool:
        before = answered(server)
        for _ in range(3 * INSTANCES):
            engine.predict(random_inputs(present))
        after = answered(server)
        return all(after[model] == before.get(model) for model in after if model[0] in MODELS)

    wait_until(none_is_called)


def test_answers_are_those_of_onnx_runtime_before_and_after_the_models_are_loaded(
    server: TritonServer, repository: Path
) -> None:
    with (
        closing(OnnxEngine(repository)) as onnx,
        closing(TritonEngine(server.grpc_url, repository, by_modality=True)) as engine,
    ):
        for _ in range(2):
            for batch in (1, 7, 40, 200):
                inputs = random_inputs(mixed_presence(batch, seed=batch), seed=batch)
                got, expected = engine.predict(inputs), onnx.predict(inputs)
                for name in ("probabilities", "embeddings", "other", "by_modality"):
                    np.testing.assert_allclose(getattr(got, name), getattr(expected, name), atol=1e-4, rtol=0)
            in_process(server, engine, np.ones((2, 3), bool))


def test_only_what_is_asked_for_is_called(server: TritonServer, repository: Path) -> None:
    """A model that no object needs is not called."""
    light_curves = np.zeros((3, 3), bool)
    light_curves[:, 0] = True
    before = answered(server)
    with closing(TritonEngine(server.grpc_url, repository)) as engine:
        in_process(server, engine, light_curves)
    after = answered(server)
    called = {model for (model, _), count in after.items() if count != before.get((model, _))}
    assert called == {"trifid", "light_curve_encoder", "classifier"}


def test_the_first_request_has_its_models_loaded_and_asks_triton_with_one_object(
    server: TritonServer, repository: Path
) -> None:
    inputs = random_inputs(np.ones((40, 3), bool))
    before = answered(server)
    with closing(OnnxEngine(repository)) as onnx, closing(TritonEngine(server.grpc_url, repository)) as engine:
        np.testing.assert_allclose(engine.predict(inputs).probabilities, onnx.predict(inputs).probabilities, atol=1e-4)

        def asked() -> dict[str, int]:
            return {model: count - before.get((model, one), 0) for (model, one), count in answered(server).items()}

        wait_until(lambda: all(asked()[model] for model in MODELS))
        assert asked() == dict.fromkeys((*MODELS, "trifid"), 1)
        in_process(server, engine, inputs.present)


def test_what_was_loaded_at_the_start_is_not_used_where_triton_does_not_serve_it(
    server: TritonServer, repository: Path
) -> None:
    inputs = random_inputs(np.ones((5, 3), bool))
    with closing(TritonEngine(server.grpc_url, repository)) as engine:
        engine._what_is_served()
        tritongrpc.InferenceServerClient(server.grpc_url).unload_model("classifier")
        wait_until(lambda: not loaded(server).get("classifier"))
        with pytest.raises(InferenceError, match="classifier"):
            engine.predict(inputs)


def test_a_file_that_answers_otherwise_than_what_triton_serves_is_not_used(
    server: TritonServer, repository: Path, tmp_path: Path
) -> None:
    """Triton has loaded another one, and nothing but the answers tells the two apart."""
    other = build_random_repository(tmp_path / "other", seed=7)
    path = repository / "classifier" / "1" / "model.onnx"
    content, was = (other / "classifier" / "1" / "model.onnx").read_bytes(), path.stat()
    assert len(content) == was.st_size
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
    client = tritongrpc.InferenceServerClient(server.grpc_url)
    client.unload_model("classifier")
    wait_until(lambda: not loaded(server).get("classifier"))
    client.load_model("classifier")
    manifest = json.loads((repository / "manifest.json").read_text())
    manifest["sha256"]["classifier/1/model.onnx"] = hashlib.sha256(content).hexdigest()
    (repository / "manifest.json").write_text(json.dumps(manifest))
    inputs = random_inputs(mixed_presence(30, seed=2), seed=2)
    with closing(OnnxEngine(repository)) as onnx, closing(TritonEngine(server.grpc_url, repository)) as engine:
        for _ in range(2 * INSTANCES):
            np.testing.assert_allclose(
                engine.predict(inputs).probabilities, onnx.predict(inputs).probabilities, atol=1e-4
            )


@pytest.mark.parametrize("warm_up", [True, False])
def test_a_repository_without_a_manifest_or_a_warm_up_is_served(
    tmp_path: Path, repository: Path, warm_up: bool
) -> None:
    """Nothing is loaded before it is asked for then, and what it is asked for is."""
    if not warm_up:
        path = repository / "metadata_encoder" / "config.pbtxt"
        path.write_text(path.read_text().partition("model_warmup")[0])
    (repository / "manifest.json").rename(tmp_path / "manifest.json")
    inputs = random_inputs(np.ones((5, 3), bool))
    with TritonServer(repository) as server:
        (tmp_path / "manifest.json").rename(repository / "manifest.json")
        with closing(OnnxEngine(repository)) as onnx, closing(TritonEngine(server.grpc_url, repository)) as engine:
            expected = onnx.predict(inputs).probabilities
            np.testing.assert_allclose(engine.predict(inputs).probabilities, expected, atol=1e-4)
            in_process(server, engine, inputs.present)
            np.testing.assert_allclose(engine.predict(inputs).probabilities, expected, atol=1e-4)


def test_each_version_answers_with_its_own_file(tmp_path: Path, repository: Path) -> None:
    """Two side by side; one whose file is replaced, and one that is unloaded, are Triton's to answer for."""
    other = build_random_repository(tmp_path / "other", seed=7)
    for model in MODELS:
        shutil.copytree(other / model / "1", repository / model / "2")
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["sha256"] = {path.replace("/1/", "/2/"): sha256 for path, sha256 in manifest["sha256"].items()}
    (repository / "manifest-second.json").write_text(json.dumps(manifest | {"model_version": "second"}))
    inputs = random_inputs(mixed_presence(30, seed=2), seed=2)
    with (
        TritonServer(repository) as server,
        closing(OnnxEngine(repository)) as onnx,
        closing(OnnxEngine(repository, version="second")) as second_onnx,
        closing(TritonEngine(server.grpc_url, repository)) as engine,
        closing(TritonEngine(server.grpc_url, repository, version="second")) as second,
    ):
        expected, second_expected = onnx.predict(inputs).probabilities, second_onnx.predict(inputs).probabilities
        assert np.abs(expected - second_expected).max() > 0.01
        for _ in range(2):
            for _ in range(INSTANCES):
                np.testing.assert_allclose(engine.predict(inputs).probabilities, expected, atol=1e-4)
                np.testing.assert_allclose(second.predict(inputs).probabilities, second_expected, atol=1e-4)
            in_process(server, engine, inputs.present)
            in_process(server, second, inputs.present)

        # Another file in its place, which Triton has not been told to load: what is served is what it has.
        path = repository / "classifier" / "2" / "model.onnx"
        shutil.copyfile(repository / "classifier" / "1" / "model.onnx", path.with_suffix(".new"))
        os.replace(path.with_suffix(".new"), path)
        before = loaded(server)["classifier"][2]
        for _ in range(INSTANCES):
            np.testing.assert_allclose(second.predict(inputs).probabilities, second_expected, atol=1e-4)
        wait_until(lambda: loaded(server)["classifier"][2] > before)
        np.testing.assert_allclose(engine.predict(inputs).probabilities, expected, atol=1e-4)


def loaded(server: TritonServer) -> dict[str, dict[int, float]]:
    return loaded_models(server.grpc_url, None, 120.0)


def test_a_model_is_called_now_and_then_so_that_triton_says_whether_it_is_there(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_in_process, "RECHECK_S", 0.5)
    inputs = random_inputs(np.ones((5, 3), bool))
    with TritonServer(repository) as server, closing(TritonEngine(server.grpc_url, repository)) as engine:
        for _ in range(2):  # what ``trifid models promote`` takes for what is in use is asked for again and again
            engine.predict(inputs)
            last = loaded(server)

            def asked_again(last: dict[str, dict[int, float]] = last) -> bool:
                engine.predict(inputs)
                now = loaded(server)
                return all(now[model][1] > last[model][1] for model in MODELS)

            wait_until(asked_again)
        tritongrpc.InferenceServerClient(server.grpc_url).unload_model("spectrum_encoder")

        def refused() -> bool:
            try:
                engine.predict(inputs)
            except InferenceError as error:
                return "spectrum_encoder" in str(error)
            return False

        wait_until(refused)


def test_what_a_model_refuses_is_refused_as_the_model_does(server: TritonServer, repository: Path) -> None:
    inputs = random_inputs(np.ones((5, 3), bool))
    with closing(TritonEngine(server.grpc_url, repository)) as engine:
        in_process(server, engine, inputs.present)
        batch = to_models(inputs, engine._what_is_served().signatures)
        assert batch is not None
        (request,) = engine._in_one(engine._what_is_served(), batch)
        request.feed["spectra"] = inputs.spectrum.spectra[:, :, :7]  # type: ignore[index]
        with pytest.raises(InferenceError, match=r"spectrum_encoder: .*shape"):
            engine._answers([request])
        assert engine.predict(inputs).probabilities.any(axis=1).all()


def test_more_batches_than_are_computed_at_a_time_wait_and_are_answered(server: TritonServer, repository: Path) -> None:
    batches = [random_inputs(mixed_presence(60 + n, seed=n), seed=n) for n in range(16)]
    with (
        closing(OnnxEngine(repository)) as onnx,
        closing(TritonEngine(server.grpc_url, repository, timeout=120.0)) as engine,
        ThreadPoolExecutor(8) as pool,
    ):
        for inputs, got in zip(batches, pool.map(engine.predict, batches), strict=True):
            np.testing.assert_allclose(got.probabilities, onnx.predict(inputs).probabilities, atol=1e-4)


def test_another_gateway_or_backend_is_served_as_it_is(tmp_path: Path, repository: Path) -> None:
    assert triton_in_process.in_process(repository, tmp_path / "linked") == tmp_path / "linked"
    path = repository / "metadata_encoder" / "config.pbtxt"
    text = path.read_text()
    for changed in (
        text.replace('"onnxruntime"', '"tensorrt"'),
        text + 'default_model_filename: "other.onnx"\n',
        text + "no protobuf",
    ):
        path.write_text(changed)
        assert triton_in_process.in_process(repository, tmp_path / "other") == repository
    path.write_text(text)
    code = repository / "trifid" / "1" / "model.py"
    code.write_text(code.read_text() + "# of another release\n")
    assert triton_in_process.in_process(repository, tmp_path / "other") == repository
    assert not (tmp_path / "other").exists()
