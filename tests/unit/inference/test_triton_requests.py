"""What is sent again to a Triton that refuses requests: how many at a time, and after which pauses."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest
from tritonclient.utils import InferenceServerException

from broker.errors import DependencyUnavailableError, InferenceError
from broker.inference import triton_requests
from broker.inference.triton_requests import Request, Requests, Sent
from broker.pauses import jittered


class Refusing:
    """A ``Sender`` to a server that refuses each request ``times``, and then answers without outputs."""

    def __init__(self, times: int, retries: int) -> None:
        self.retries = retries
        self.under_way: list[Sent] = []
        self.most_under_way: list[int] = []
        """With each request that is sent, how many are under way then."""
        self._times = times
        self._refused: dict[Request, int] = {}

    def send(self, request: Request) -> Sent:
        sent = Sent(request, Future(), None, None)
        self.under_way.append(sent)
        self.most_under_way.append(len(self.under_way))
        return sent

    def result(self, sent: Sent) -> Any:
        self.abandon(sent)
        refused = self._refused.setdefault(sent.request, 0)
        if refused < self._times:
            self._refused[sent.request] += 1
            raise InferenceServerException("Exceeds maximum queue size", "StatusCode.UNAVAILABLE")
        return self

    def abandon(self, sent: Sent) -> None:
        self.under_way.remove(sent)

    def failure(self, error: InferenceServerException) -> DependencyUnavailableError | InferenceError:
        return DependencyUnavailableError(str(error))

    def get_response(self) -> Any:
        return self

    @property
    def outputs(self) -> list[Any]:
        return []


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    pauses: list[float] = []
    monkeypatch.setattr(triton_requests.time, "sleep", pauses.append)
    return pauses


def test_refused_requests_are_sent_again_one_at_a_time(slept: list[float]) -> None:
    sender = Refusing(times=2, retries=2)
    requests = [Request("trifid", "", {}) for _ in range(4)]
    with Requests(sender, requests) as sent:
        assert sent.answers() == [{}] * 4
    assert sender.most_under_way == [1, 2, 3, 4] + [1] * 8
    assert len(slept) == 8


def test_the_first_that_fails_to_the_end_ends_the_others(slept: list[float]) -> None:
    sender = Refusing(times=9, retries=2)
    requests = [Request("trifid", "", {}) for _ in range(4)]
    with Requests(sender, requests) as sent, pytest.raises(DependencyUnavailableError, match="queue size"):
        sent.answers()
    assert sender.most_under_way == [1, 2, 3, 4, 1, 1]
    assert not sender.under_way


def test_pauses_of_those_that_were_refused_together_differ(slept: list[float]) -> None:
    for _ in range(20):
        with Requests(Refusing(times=3, retries=3), [Request("trifid", "", {})]) as sent:
            sent.answers()
    for number, mean in enumerate((0.1, 0.2, 0.4)):
        pauses = slept[number::3]
        assert len(set(pauses)) == 20
        assert all(mean / 2 <= pause <= 1.5 * mean for pause in pauses)


def test_a_jittered_pause_is_as_long_as_asked_for_on_average() -> None:
    pauses = [jittered(8.0) for _ in range(4000)]
    assert min(pauses) >= 4
    assert max(pauses) <= 12
    assert sum(pauses) / 4000 == pytest.approx(8, abs=0.3)  # eight standard deviations
