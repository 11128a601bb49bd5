"""The configurations in ``model_repo``: read as Triton reads them, and compared with the models they are for."""

from __future__ import annotations

from typing import Any

import onnxruntime
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from broker.config import PipelineSettings, TritonSettings
from broker.inference.encode import _TENSORS
from broker.inference.manifest import MODELS, load_manifest
from tests.random_models import MODEL_REPO

ONNX_TYPES = {"tensor(float)": "TYPE_FP32", "tensor(bool)": "TYPE_BOOL"}


def config_of(model: str) -> Any:
    text = (MODEL_REPO / model / "config.pbtxt").read_text()
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def tensor(value: Any) -> tuple[str, list[int]]:
    return model_config_pb2.DataType.Name(value.data_type), list(value.dims)


@pytest.mark.parametrize("model", MODELS)
def test_the_warm_up_is_a_batch_of_what_the_model_takes(model: str) -> None:
    session = onnxruntime.InferenceSession(MODEL_REPO / load_manifest(MODEL_REPO).path_of(model))
    (warm_up,) = config_of(model).model_warmup
    assert {name: tensor(value) for name, value in warm_up.inputs.items()} == {
        node.name: (ONNX_TYPES[node.type], node.shape[1:]) for node in session.get_inputs()
    }
    assert warm_up.batch_size == PipelineSettings().batch_size <= config_of(model).max_batch_size


def test_the_classifier_says_what_its_probabilities_are_of() -> None:
    assert config_of("classifier").parameters["classes"].string_value == ",".join(load_manifest(MODEL_REPO).classes)


def test_the_queue_ends_and_nothing_waits_longer_than_trifid_does() -> None:
    batching = config_of("trifid").dynamic_batching
    queue = batching.default_queue_policy
    assert (queue.max_queue_size, batching.max_queue_delay_microseconds) == (256, 0)
    assert queue.default_timeout_microseconds == 1e6 * TritonSettings().timeout_s
    assert queue.timeout_action == queue.REJECT
    assert queue.allow_timeout_override


@pytest.mark.parametrize("model", MODELS)
def test_behind_it_no_queue_has_a_policy(model: str) -> None:
    """With one, requests of several clients wait now and then for 500 ms (docs/serving.md)."""
    config = config_of(model)
    assert config.HasField("dynamic_batching")
    assert not config.dynamic_batching.HasField("default_queue_policy")
    assert not config.dynamic_batching.priority_queue_policy
    assert config.dynamic_batching.max_queue_delay_microseconds == 0


def test_two_releases_can_be_served_at_once() -> None:
    for model in MODELS:
        assert config_of(model).version_policy.latest.num_versions == 2


def test_the_one_request_takes_what_the_encoders_take() -> None:
    config = config_of("trifid")
    given = {value.name: model_config_pb2.DataType.Name(value.data_type)[5:] for value in config.input}
    encoders = [_TENSORS[model][0] for model in MODELS[:3]]
    assert given == {"present": "BOOL", "detections": "FP32", "event": "FP32"} | encoders[0] | encoders[1] | encoders[2]
    assert {value.name for value in config.input if not value.optional} == {"present", "detections"}
    assert config.max_batch_size == 0
