"""The repository as the local Triton serves it: with a ``trifid`` that runs the models in its own process.

A folder of links to the models, and the model ``trifid`` made anew: its code is ``deploy/local/triton/in_process``, its
configuration that of the repository, queue and instances included, with what the code needs to know of the models'.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from broker.inference.manifest import MODELS
from broker.inference.triton import GATEWAY

_CHECKOUT: Final = Path(__file__).resolve().parents[2]
_CODE: Final = {
    "model.py": _CHECKOUT / "deploy" / "local" / "triton" / "in_process" / "model.py",
    "onnx_models.py": _CHECKOUT / "deploy" / "local" / "triton" / "onnxruntime" / "model.py",
    "gateway.py": _CHECKOUT / "model_repo" / GATEWAY / "1" / "model.py",
}
RECHECK_S: Final = 60.0
"""So often a model is called that could be run in the gateway's process."""


def in_process(repository: Path, folder: Path) -> Path:
    """Make ``folder`` such a repository, and return it.

    ``repository`` itself where it has not this release's ``trifid``, or a model that is not ``model.onnx`` for ONNX
    Runtime, or a configuration that cannot be read, of which Triton then says what is wrong.
    """
    code = repository / GATEWAY / "1" / "model.py"
    try:
        gateway, *models = (_configuration(repository / model) for model in (GATEWAY, *MODELS))
        if code.read_bytes() != _CODE["gateway.py"].read_bytes():
            return repository
    except (OSError, text_format.ParseError):
        return repository
    if any(model.backend != "onnxruntime" or model.default_model_filename for model in models):
        return repository
    settings = {
        "threads": {
            name: int(model.parameters["intra_op_thread_count"].string_value or 0)
            for name, model in zip(MODELS, models, strict=True)
        },
        "recheck_s": RECHECK_S,
    }
    gateway.parameters["in_process"].string_value = json.dumps(settings)
    folder.mkdir()
    for path in repository.iterdir():
        if path.is_dir() and path.name != GATEWAY:
            (folder / path.name).symlink_to(path)
    (folder / GATEWAY / "1").mkdir(parents=True)
    (folder / GATEWAY / "config.pbtxt").write_text(text_format.MessageToString(gateway))
    for name, path in _CODE.items():
        (folder / GATEWAY / "1" / name).symlink_to(path)
    return folder


def _configuration(folder: Path) -> model_config_pb2.ModelConfig:
    return text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
