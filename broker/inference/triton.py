"""The engine that sends batches to NVIDIA Triton, over gRPC."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from tritonclient import grpc as tritongrpc
from tritonclient.utils import InferenceServerException

from broker.assemble.inputs import ModelInputs
from broker.errors import ConfigurationError, DependencyUnavailableError, InferenceError
from broker.inference import Begun, Later, Predictions, equal_parts
from broker.inference.encode import (
    BY_MODALITY,
    RequestBatch,
    Signature,
    Tensors,
    TensorSpec,
    check_signatures,
    classify_by,
    embedding_width,
    predictions_of,
    to_models,
)
from broker.inference.manifest import CLASSIFIER, MODELS, Manifest, load_manifest
from broker.inference.shared_memory import SharedMemory, in_message
from broker.inference.triton_client import AWAY, TritonTls, connect
from broker.inference.triton_requests import Predicting, Request, Requests, Sent, joined

log = logging.getLogger(__name__)

GATEWAY: Final = "trifid"
"""The server's model that runs the others (``model_repo/trifid``); no trained one, and so not in the manifest."""

_UNANSWERED: Final = frozenset({"StatusCode.DEADLINE_EXCEEDED", "StatusCode.CANCELLED"})
_NO_REGION: Final = "shared memory region"  # in Triton's message where it does not know one
_UNLIMITED: Final = 1 << 30  # objects of a request
LEAST: Final = 64
"""Objects of a part of a batch; a request costs the CPU as much as twenty objects do (docs/serving.md)."""


@dataclass(frozen=True, slots=True)
class _Served:
    """What the server said of its models."""

    signatures: Mapping[str, Signature]
    max_batch: Mapping[str, int]
    """Largest batch of one request; 0 where any size is taken."""
    gateway: bool
    """Whether the server has GATEWAY."""
    by_modality: bool
    """Whether GATEWAY is to be asked for the encoders' embeddings, and gives them."""


class TritonEngine:
    """Runs the models on a Triton server. One engine may be used by several threads."""

    def __init__(
        self,
        url: str,
        model_repository: Path,
        *,
        version: str | None = None,
        timeout: float = 10.0,
        retries: int = 2,
        tls: TritonTls | None = None,
        one_request: bool = True,
        requests_in_flight: int = 1,
        shared_memory: bool = True,
        by_modality: bool = False,
    ) -> None:
        """Prepare a connection to ``url`` (``host:port`` of the gRPC service); none is made yet.

        ``model_repository`` needs to hold its manifests only; ``version`` is one of its versions, the served one where
        None. A request is abandoned after ``timeout`` seconds, and tried again up to ``retries`` times. With
        ``one_request`` a batch is one request where the server has the model ``trifid``, else one for each encoder and
        one for the classifier; a batch of at least twice LEAST objects is up to ``requests_in_flight`` such requests at
        the same time. With ``shared_memory`` the server reads inputs from there where it is seen to be on this host.
        With ``by_modality`` predictions have the embeddings of each modality, 6 kB an object more from the server.
        Raises ConfigurationError where the manifest or a TLS file cannot be used.
        """
        self.manifest: Final[Manifest] = load_manifest(model_repository, version, verify_models=False)
        self._url = url
        self._timeout = timeout
        self.retries = retries
        self._client = connect(url, tls)
        self._one_request, self._by_modality = one_request, by_modality
        self._in_flight = requests_in_flight
        self._shared = SharedMemory(self._client, timeout) if shared_memory else None
        self._served: _Served | None = None

    @property
    def model_version(self) -> str:
        """Name and version of the model, as published with each annotation."""
        return self.manifest.identity

    def predict(self, inputs: ModelInputs) -> Predictions:
        """Run encoders and classifier, as described at ``predictions_of``.

        The first call, and each after the server was unavailable, checks that the models served are those of the
        manifest. Raises DependencyUnavailableError where Triton is unavailable, ConfigurationError where it serves
        other models, InferenceError where it refuses the batch.
        """
        parts = self.parts(len(inputs))
        with ExitStack() as stack:
            begun = [stack.enter_context(self.begin(inputs.rows(part))) for part in parts]
            return Predictions.joined([part.result() for part in begun])

    def parts(self, objects: int) -> list[slice]:
        """See ``Engine.parts``: more than one where a part is one request; raises as ``predict``."""
        most = self._in_flight if self._what_is_served().gateway else 1
        return equal_parts(objects, most, LEAST)

    def begin(self, inputs: ModelInputs) -> Begun:
        """Send a batch as one request; what a server without GATEWAY needs for it is done when it is waited for.

        Raises as ``predict``.
        """
        served = self._what_is_served()
        batch = to_models(inputs, served.signatures)

        def predictions(outputs: Tensors) -> Predictions:
            return predictions_of(inputs, served.signatures, outputs)

        if batch is None:
            return Later(lambda: predictions({}))
        if not served.gateway:
            run_models = partial(self._run_models, served.max_batch)
            classify = classify_by(run_models, embedding_width(served.signatures))
            return Later(lambda: predictions(classify(batch)))
        return Predicting(Requests(self, self._in_one(served, batch)), predictions)

    def embedding_width(self) -> int:
        """See ``Engine.embedding_width``; raises as ``predict`` where Triton is unavailable or serves other models."""
        return embedding_width(self._what_is_served().signatures)

    def check(self) -> None:
        """See ``Engine.check``: whether the server has loaded the manifest's versions of all models."""
        try:
            missing = [
                model
                for model in MODELS
                if not self._client.is_model_ready(model, self.manifest.version_of(model), client_timeout=self._timeout)
            ]
        except InferenceServerException as error:
            raise DependencyUnavailableError(f"Triton at {self._url}: {error}") from error
        if missing:
            raise DependencyUnavailableError(f"Triton at {self._url} has not loaded {', '.join(missing)}")

    def placement(self) -> dict[str, str]:
        """See ``Engine.placement``: the instance groups that the server made of the models' configurations."""
        kinds: dict[str, str] = {}
        try:
            for model in MODELS:
                answer = self._client.get_model_config(
                    model, self.manifest.version_of(model), client_timeout=self._timeout
                )
                groups = {type(group).Kind.Name(group.kind) for group in answer.config.instance_group}
                kinds[model] = " and ".join(sorted(groups))
        except InferenceServerException as error:
            raise DependencyUnavailableError(f"Triton at {self._url}: {error}") from error
        return kinds

    def device(self) -> str | None:
        """See ``Engine.device``."""
        return {frozenset({"KIND_GPU"}): "gpu", frozenset({"KIND_CPU"}): "cpu"}.get(
            frozenset(self.placement().values())
        )

    def close(self) -> None:
        """Close the connection, after the shared memory."""
        if self._shared is not None:
            self._shared.close()
        self._client.close()

    def _what_is_served(self) -> _Served:
        served = self._served
        if served is None:
            served = self._served = self._ask_what_is_served()
        return served

    def _ask_what_is_served(self) -> _Served:
        signatures: dict[str, Signature] = {}
        max_batch: dict[str, int] = {}
        try:
            if not self._client.is_server_ready(client_timeout=self._timeout):
                raise DependencyUnavailableError(f"Triton at {self._url} is still loading its models")
            gateway = self._one_request and self._client.is_model_ready(GATEWAY, client_timeout=self._timeout)
            by_modality = False
            if gateway and self._by_modality:
                given = self._client.get_model_metadata(GATEWAY, client_timeout=self._timeout).outputs
                by_modality = BY_MODALITY in {output.name for output in given}
                if not by_modality:
                    log.warning(
                        "the model %s of Triton at %s is of an earlier release: no embeddings by modality", GATEWAY,
                        self._url,
                    )  # fmt: skip
            for model in MODELS:
                version = self.manifest.version_of(model)
                metadata = self._client.get_model_metadata(model, version, client_timeout=self._timeout)
                config = self._client.get_model_config(model, version, client_timeout=self._timeout)
                signatures[model] = Signature(_specs(metadata.inputs), _specs(metadata.outputs))
                max_batch[model] = config.config.max_batch_size
        except InferenceServerException as error:
            if error.status() in AWAY:
                raise DependencyUnavailableError(f"Triton at {self._url}: {error}") from error
            raise ConfigurationError(f"Triton at {self._url} does not serve {self.model_version}: {error}") from error
        check_signatures(signatures, self.manifest)
        if self._one_request and not gateway:
            log.warning("Triton at %s has no model %s: a batch takes up to four requests", self._url, GATEWAY)
        if self._shared is not None:
            self._shared.look()
        return _Served(signatures, max_batch, gateway, by_modality)

    def _in_one(self, served: _Served, batch: RequestBatch) -> list[Request]:
        """A request of the server's GATEWAY, or one for each as many objects as its models take."""
        most = min((size for size in served.max_batch.values() if size), default=_UNLIMITED)
        outputs = (*served.signatures[CLASSIFIER].outputs, *([BY_MODALITY] if served.by_modality else []))
        options = {"outputs": outputs, "parameters": {model: self.manifest.version_of(model) for model in MODELS}}
        return [
            Request(GATEWAY, "", batch.part(start, start + most).tensors(), options)
            for start in range(0, len(batch), most)
        ]

    def _run_models(self, max_batch: Mapping[str, int], feeds: Mapping[str, Tensors]) -> dict[str, Tensors]:
        requests = list(_requests(self.manifest, max_batch, feeds))
        answers = self._answers(requests)
        return {
            model: joined([answer for request, answer in zip(requests, answers, strict=True) if request.model == model])
            for model in feeds
        }

    def _answers(self, requests: Sequence[Request]) -> list[Tensors]:
        with Requests(self, requests) as sent:
            return sent.answers()

    def send(self, request: Request, *, in_shared_memory: bool = True) -> Sent:
        """See ``Sender.send``; inputs go in the message where not ``in_shared_memory``."""
        shared = self._shared if in_shared_memory else None
        inputs, region = (in_message(request.feed), None) if shared is None else shared.place(request.feed)
        answer: Future[Any] = Future()
        options = dict(request.options)
        if "outputs" in options:
            options["outputs"] = [tritongrpc.InferRequestedOutput(name) for name in options["outputs"]]
        try:
            call = self._client.async_infer(
                request.model,
                inputs,
                callback=_into(answer),
                model_version=request.version,
                # So long it may wait in the server's queue, where nobody waits for it afterwards.
                timeout=int(1e6 * self._timeout),
                client_timeout=self._timeout,
                **options,
            )
        except BaseException as error:
            if shared is not None:
                shared.give_back(region)
            if isinstance(error, ValueError):  # gRPC's answer to a call on a closed channel
                raise InferenceError("the engine is closed") from error
            raise
        return Sent(request, answer, region, call)

    def result(self, sent: Sent) -> Any:
        """See ``Sender.result``."""
        shared, region = self._shared, sent.region
        try:
            result = sent.answer.result()
        except InferenceServerException as error:
            if shared is None or region is None:
                raise
            if _NO_REGION in str(error):
                # The server was started anew and does not know the region: no failure of the request.
                shared.look()
            shared.give_back(region, answered=error.status() not in _UNANSWERED)
            if _NO_REGION not in str(error):
                raise
            return self.send(sent.request, in_shared_memory=False).answer.result()
        if shared is not None:
            shared.give_back(region)
        return result

    def abandon(self, sent: Sent) -> None:
        """Nobody waits for the answer any more: the server need not make it, if it has not begun."""
        error = None
        if answered := sent.answer.done():
            error = sent.answer.exception()
        else:
            sent.call.cancel()
        if self._shared is not None:
            late = isinstance(error, InferenceServerException) and error.status() in _UNANSWERED
            self._shared.give_back(sent.region, answered=answered and not late)

    def failure(self, error: InferenceServerException) -> DependencyUnavailableError | InferenceError:
        """See ``Sender.failure``."""
        text = f"Triton at {self._url}: {error}"
        if error.status() not in AWAY:
            return InferenceError(text)
        self._served = None
        return DependencyUnavailableError(text)


def _requests(manifest: Manifest, max_batch: Mapping[str, int], feeds: Mapping[str, Tensors]) -> Iterator[Request]:
    for model, feed in feeds.items():
        rows = len(next(iter(feed.values())))
        step = max_batch[model] or rows
        for start in range(0, rows, step):
            part = {name: array[start : start + step] for name, array in feed.items()}
            yield Request(model, manifest.version_of(model), part)


def _into(call: Future[Any]) -> Any:
    def done(result: Any, error: InferenceServerException | None) -> None:
        if error is None:
            call.set_result(result)
        else:
            call.set_exception(error)

    return done


def _specs(tensors: Sequence[Any]) -> dict[str, TensorSpec]:
    return {tensor.name: TensorSpec(tensor.datatype, tuple(tensor.shape[1:])) for tensor in tensors}
