"""Requests to Triton that are under way at the same time, tried again or cancelled together."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn, Protocol, Self

import numpy as np
from tritonclient.utils import InferenceServerException

from broker.errors import DependencyUnavailableError, InferenceError
from broker.inference import Predictions
from broker.inference.encode import Tensors
from broker.inference.shared_memory import Region
from broker.inference.triton_client import AWAY
from broker.pauses import jittered

# Failures inside the server (a backend process that died, memory of the GPU that ran out) may pass as well,
# but where they persist it is the batch that is refused, not the server that is unavailable.
_RETRIED: Final = AWAY | {"StatusCode.INTERNAL", "StatusCode.UNKNOWN"}
_FIRST_PAUSE: Final = 0.1  # seconds, on average; doubled with each retry


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One batch for one model of the server, no larger than that takes."""

    model: str
    version: str
    feed: Tensors
    options: Mapping[str, Any] = field(default_factory=dict)
    """More arguments of ``async_infer``; of outputs the names."""


@dataclass(frozen=True, slots=True, eq=False)
class Sent:
    """A request that is under way."""

    request: Request
    answer: Future[Any]
    region: Region | None
    call: Any
    """gRPC's, by which it is cancelled."""


class Sender(Protocol):
    """Who sends requests: ``TritonEngine``."""

    @property
    def retries(self) -> int:
        """Further attempts at a request that failed for what may pass."""

    def send(self, request: Request) -> Sent:
        """Send one; raises InferenceError where the connection is closed."""

    def result(self, sent: Sent) -> Any:
        """Wait for its answer; raises InferenceServerException."""

    def abandon(self, sent: Sent) -> None:
        """Nobody waits for its answer any more."""

    def failure(self, error: InferenceServerException) -> DependencyUnavailableError | InferenceError:
        """What to raise for one that has failed to the end."""


class Requests:
    """Requests that are sent at once; at the end of the context those that are still under way are cancelled."""

    def __init__(self, sender: Sender, requests: Sequence[Request]) -> None:
        self._sender, self._requests = sender, requests
        self._answers: dict[Request, Tensors] = {}
        self._sent: deque[Sent] = deque()
        self._send(requests)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        while self._sent:
            self._sender.abandon(self._sent.popleft())

    def answers(self) -> list[Tensors]:
        """Outputs for each request; those that fail for what may pass are sent again, after growing pauses.

        One of them at a time: a server that refused some would refuse most of them again, if they came together.
        Raises DependencyUnavailableError or InferenceError where one has failed to the end.
        """
        failures = self._wait()
        for error in failures.values():
            if error.status() not in _RETRIED:  # there is no use in the others either
                self._give_up(error)
        for request, error in failures.items():
            self._try_again(request, error)
        return [self._answers[request] for request in self._requests]

    def _try_again(self, request: Request, error: InferenceServerException) -> None:
        pause = _FIRST_PAUSE
        for _ in range(self._sender.retries):
            if error.status() not in _RETRIED:
                break
            time.sleep(jittered(pause))
            pause *= 2
            self._send([request])
            failures = self._wait()
            if not failures:
                return
            error = failures[request]
        self._give_up(error)

    def _send(self, requests: Sequence[Request]) -> None:
        try:
            for request in requests:
                self._sent.append(self._sender.send(request))
        except BaseException:
            self.__exit__()
            raise

    def _wait(self) -> dict[Request, InferenceServerException]:
        """Wait for all that is under way; those that failed."""
        failures: dict[Request, InferenceServerException] = {}
        while self._sent:
            sent = self._sent.popleft()
            try:
                result = self._sender.result(sent)
            except InferenceServerException as error:
                failures[sent.request] = error
            else:
                self._answers[sent.request] = {
                    output.name: result.as_numpy(output.name) for output in result.get_response().outputs
                }
        return failures

    def _give_up(self, error: InferenceServerException) -> NoReturn:
        raise self._sender.failure(error) from error


class Predicting:
    """``Begun`` on a server."""

    def __init__(self, requests: Requests, predictions: Callable[[Tensors], Predictions]) -> None:
        """``predictions`` makes them of what ``Classify`` gives."""
        self._requests, self._predictions = requests, predictions

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._requests.__exit__(*exception)

    def result(self) -> Predictions:
        """See ``Begun.result``."""
        return self._predictions(joined(self._requests.answers()))


def joined(parts: Sequence[Tensors]) -> Tensors:
    """The tensors of the parts of a batch as those of the batch."""
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
