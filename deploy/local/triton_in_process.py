"""The repository as the local Triton serves it: with a ``trifid`` that runs the models in its own process.

A folder of links to the models, and the model ``trifid`` made anew: its code is ``deploy/local/triton/in_process``, its
configuration that of the repository, queue included, with what the code needs to know of the models', fewer instances
where cores are few, and a batch that warms up each of them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Final

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from broker.errors import ConfigurationError
from broker.inference.manifest import CLASSIFIER, MODELS, load_manifest
from broker.inference.triton import GATEWAY

_CHECKOUT: Final = Path(__file__).resolve().parents[2]
_CODE: Final = {
    "model.py": _CHECKOUT / "deploy" / "local" / "triton" / "in_process" / "model.py",
    "onnx_models.py": _CHECKOUT / "deploy" / "local" / "triton" / "onnxruntime" / "model.py",
    "gateway.py": _CHECKOUT / "model_repo" / GATEWAY / "1" / "model.py",
}
RECHECK_S: Final = 60.0
"""So often a model is called that could be run in the gateway's process."""
LEAST_INSTANCES: Final = 2
"""Of the gateway, where cores are few: a batch takes all cores, and the next is read and answered beside it."""
WARMED_SPECTRA: Final = 32
"""Objects with a spectrum in the batch that warms up: few have one, and memory for many would be kept."""
_PRESENT: Final = "present"
_SPECTRA: Final = "spectra"


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
        "served": _served(repository),
    }
    gateway.parameters["in_process"].string_value = json.dumps(settings)
    for group in gateway.instance_group:
        group.count = min(group.count, max(LEAST_INSTANCES, len(os.sched_getaffinity(0)) // 2))
    folder.mkdir()
    for path in repository.iterdir():
        if path.is_dir() and path.name != GATEWAY:
            (folder / path.name).symlink_to(path)
    (folder / GATEWAY / "1").mkdir(parents=True)
    _warm_up(gateway, dict(zip(MODELS, models, strict=True)), folder / GATEWAY / "warmup")
    (folder / GATEWAY / "config.pbtxt").write_text(text_format.MessageToString(gateway))
    for name, path in _CODE.items():
        (folder / GATEWAY / "1" / name).symlink_to(path)
    return folder


def _served(repository: Path) -> dict[str, str]:
    """The versions that the manifest names; none where there is no manifest that can be used."""
    try:
        manifest = load_manifest(repository, verify_models=False)
    except ConfigurationError:
        return {}
    return {model: manifest.version_of(model) for model in MODELS}


def _warm_up(
    gateway: model_config_pb2.ModelConfig, models: dict[str, model_config_pb2.ModelConfig], folder: Path
) -> None:
    """Have each instance of the gateway run the batch that warms up the models, with all modalities."""
    if any(not model.model_warmup for model in models.values()):
        return  # those of versions that take different inputs have none (``broker.models.warm_up``)
    rows = models[CLASSIFIER].model_warmup[0].batch_size
    spectra = min(rows, WARMED_SPECTRA)
    warm_up = gateway.model_warmup.add(name="batch", batch_size=1)
    own = {tensor.name for tensor in gateway.input}
    for model in models.values():
        for name, tensor in model.model_warmup[0].inputs.items():
            if name in own:
                warm_up.inputs[name].CopyFrom(tensor)
                warm_up.inputs[name].dims[:] = [spectra if name == _SPECTRA else rows, *tensor.dims]
    # A file, as Triton makes zeros or random numbers only; (rows, 3) bool of light curve, spectrum and metadata.
    present = warm_up.inputs[_PRESENT]
    folder.mkdir()
    (folder / _PRESENT).write_bytes(b"\1\1\1" * spectra + b"\1\0\1" * (rows - spectra))
    present.input_data_file = _PRESENT


def _configuration(folder: Path) -> model_config_pb2.ModelConfig:
    return text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
