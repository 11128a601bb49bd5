"""Named variants of the server's configuration: for which hardware, and how far answers may be from the reference."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from broker.errors import ConfigurationError

_KIND: Final = re.compile(r"KIND_(AUTO|CPU|GPU)")
_TENSORRT: Final = """
# Of the variant tensorrt-fp16. Engines are built at the first start, which takes minutes, and kept.
optimization { execution_accelerators { gpu_execution_accelerator : [ {
  name : "tensorrt"
  parameters { key: "precision_mode" value: "FP16" }
  parameters { key: "trt_engine_cache_enable" value: "true" }
  parameters { key: "trt_engine_cache_path" value: "/var/cache/trifid/tensorrt" }
} ] } }
"""


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to serve the same ONNX files."""

    name: str
    kind: str
    """Of ``instance_group``."""
    provider: str
    """Of ONNX Runtime, on which it is checked; what Triton's backend uses for ``kind``."""
    tolerance: float
    """Largest difference from the reference implementation in a probability, and in a value of an embedding."""
    provider_options: Mapping[str, str] = field(default_factory=dict)
    configuration: str = ""
    """What it adds to each ``config.pbtxt``."""

    def configured(self, text: str) -> str:
        """``config.pbtxt`` of an encoder or the classifier, for this variant."""
        if self.name == "auto":
            return text
        new, found = _KIND.subn(self.kind, "\n".join(_without_comments(text)))
        if found != 1:
            raise ConfigurationError(f"config.pbtxt has {found} times `kind: KIND_...`, not once")
        return new.rstrip() + "\n" + self.configuration


def _without_comments(text: str) -> list[str]:
    return [line for line in text.split("\n") if not line.startswith("#")]


# 1e-4 is how far Triton, ONNX Runtime and the reference may be apart in single precision, sums being taken in another
# order. CUDA multiplies with 10 bits of mantissa (TF32), and half precision has as many: 2^-11 in each factor.
VARIANTS: Final[Mapping[str, Variant]] = {
    variant.name: variant
    for variant in (
        Variant("auto", "KIND_AUTO", "CPUExecutionProvider", 1e-4),
        Variant("cpu", "KIND_CPU", "CPUExecutionProvider", 1e-4),
        Variant("cuda", "KIND_GPU", "CUDAExecutionProvider", 5e-3),
        Variant("tensorrt-fp16", "KIND_GPU", "TensorrtExecutionProvider", 2e-2, {"trt_fp16_enable": "1"}, _TENSORRT),
    )
}


def variant_of(name: str) -> Variant:
    """The variant of a name; raises ConfigurationError for an unknown one."""
    try:
        return VARIANTS[name]
    except KeyError:
        raise ConfigurationError(f"no variant {name!r}: {', '.join(VARIANTS)} are") from None
