"""Connections to a Triton server, and its explicit model control."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tritonclient import grpc as tritongrpc
from tritonclient.utils import InferenceServerException

from broker.errors import ConfigurationError, DependencyUnavailableError
from broker.inference.manifest import MODELS

# Triton answers UNAVAILABLE while it starts, stops, loads a model or has a full queue.
AWAY: Final = frozenset(
    f"StatusCode.{code}" for code in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "RESOURCE_EXHAUSTED")
)

_CHANNEL_OPTIONS: Final = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # gRPC's default lets pauses between attempts to connect grow to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)


@dataclass(frozen=True, slots=True)
class TritonTls:
    """Files in PEM format for a TLS connection; with a key and a certificate the client identifies itself."""

    root_certificates: Path | None = None
    """Authorities to trust; gRPC's own list where None."""
    private_key: Path | None = None
    certificate_chain: Path | None = None


def connect(url: str, tls: TritonTls | None) -> Any:
    """A client of the server at ``url``; it connects when it is used. Raises ConfigurationError for a missing file."""
    files = tls or TritonTls()
    paths = (files.root_certificates, files.private_key, files.certificate_chain)
    for path in paths:
        if path is not None and not path.is_file():
            raise ConfigurationError(f"TLS file {path} does not exist")
    root, key, chain = (None if path is None else str(path) for path in paths)
    return tritongrpc.InferenceServerClient(
        url,
        ssl=tls is not None,
        root_certificates=root,
        private_key=key,
        certificate_chain=chain,
        channel_args=list(_CHANNEL_OPTIONS),
    )


def load_models(url: str, tls: TritonTls | None, timeout: float) -> None:
    """Have a server with explicit model control load what its repository's configuration says, beside what it serves.

    Each model has ``timeout`` seconds. Requests in flight, and versions that stay, are not interrupted. Raises
    DependencyUnavailableError where the server is unavailable, ConfigurationError where it refuses.
    """
    client = connect(url, tls)
    try:
        for model in MODELS:
            client.load_model(model, client_timeout=timeout)
    except InferenceServerException as error:
        if error.status() in AWAY - {"StatusCode.UNAVAILABLE"} or not _answers(client, timeout):
            raise DependencyUnavailableError(f"Triton at {url}: {error}") from error
        raise ConfigurationError(f"Triton at {url} does not load {model}: {error}") from error
    finally:
        client.close()


def loaded_models(url: str, tls: TritonTls | None, timeout: float) -> dict[str, dict[int, float]]:
    """The versions of each model that a server has loaded, and when each was last asked for.

    Seconds since 1970 by the server's clock, 0 for never. Raises DependencyUnavailableError where it does not answer
    within ``timeout`` seconds.
    """
    client = connect(url, tls)
    found: dict[str, dict[int, float]] = {model: {} for model in MODELS}
    try:
        for row in client.get_inference_statistics(client_timeout=timeout).model_stats:
            if row.name in found:
                found[row.name][int(row.version)] = row.last_inference / 1e3
    except InferenceServerException as error:
        raise DependencyUnavailableError(f"Triton at {url}: {error}") from error
    finally:
        client.close()
    return found


def _answers(client: Any, timeout: float) -> bool:
    try:
        return bool(client.is_server_live(client_timeout=timeout))
    except InferenceServerException:
        return False
