from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
from prometheus_client import REGISTRY

from broker.batch import BatchResult, DeadLetter, IncomingMessage, Origin
from broker.errors import ConfigurationError, DependencyUnavailableError
from broker.publish.messages import Publisher
from broker.publish.topics import OutputTopics
from broker.streaming.handling import Handled, Process, handle
from broker.streaming.work_thread import WorkThread

PUBLISHER = Publisher(OutputTopics("trifid", 0.9), "Trifid", 1000)


def messages(*payloads: bytes) -> list[IncomingMessage]:
    return [IncomingMessage(p, 61000.0, Origin("alerts.ztf", 0, n, 0)) for n, p in enumerate(payloads)]


def process(batch: Sequence[IncomingMessage]) -> BatchResult:
    """Every message is a dead letter of the survey ``ztf``, but for one that sets off a bug."""
    if any(m.payload == b"bug" for m in batch):
        raise KeyError("candid")
    if any(m.payload == b"away" for m in batch):
        raise DependencyUnavailableError("Redis is unavailable")
    if any(m.payload == b"wrong" for m in batch):
        raise ConfigurationError("model")
    return BatchResult(
        messages=len(batch), alerts_in=Counter(ztf=len(batch)), spectra_in=1, spectra_stored=1,
        dead_letters=[DeadLetter(m, "ztf", "as it should be") for m in batch],
    )  # fmt: skip


def handle_all(process: Process, publisher: Publisher, batch: list[IncomingMessage]) -> Handled:
    """As the service does it: one after the other, until nothing is left."""
    result, outgoing = BatchResult(), []
    while result.messages < len(batch):
        part, messages = handle(process, publisher, batch[result.messages :])
        assert part.messages > 0
        result += part
        outgoing += messages
    return result, outgoing


def test_the_message_that_fails_is_found_and_the_others_go_on_in_order() -> None:
    payloads = [b"%d" % n for n in range(20)]
    payloads[13] = b"bug"
    before = REGISTRY.get_sample_value("trifid_stage_seconds_count", {"stage": "publish"}) or 0.0
    result, outgoing = handle_all(process, PUBLISHER, messages(*payloads))
    assert [m.value for m in outgoing] == payloads
    assert (REGISTRY.get_sample_value("trifid_stage_seconds_count", {"stage": "publish"}) or 0.0) > before
    assert result.alerts_in == {"ztf": 19, "unknown": 1}
    assert result.spectra_in == result.spectra_stored > 1
    (letter,) = [letter for letter in result.dead_letters if letter.message.payload == b"bug"]
    assert letter.reason.startswith("KeyError: 'candid' in process (test_handling.py:")
    assert (letter.survey, letter.alert_id) == ("unknown", None)
    assert letter.traceback is not None
    assert letter.traceback.endswith("KeyError: 'candid'\n")


def test_an_annotation_that_cannot_be_written_is_a_dead_letter() -> None:
    class Broken(Publisher):
        def messages(self, result: BatchResult):  # type: ignore[no-untyped-def]
            if any(m.message.payload == b"big" and m.survey == "ztf" for m in result.dead_letters):
                raise OverflowError("int too big")
            return super().messages(result)

    broken = Broken(OutputTopics("trifid", 0.9), "Trifid", 1000)
    result, outgoing = handle_all(process, broken, messages(b"a", b"big", b"b"))
    assert [m.value for m in outgoing] == [b"a", b"big", b"b"]
    assert result.alerts_in == {"ztf": 2, "unknown": 1}


@pytest.mark.parametrize(("payload", "error"), [(b"away", DependencyUnavailableError), (b"wrong", ConfigurationError)])
def test_what_concerns_all_is_passed_on(payload: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        handle(process, PUBLISHER, messages(b"a", payload))


def test_a_worker_thread_does_one_thing_after_the_other() -> None:
    work_thread = WorkThread()
    done: list[int] = []
    futures = [work_thread.submit(lambda n=n: done.append(n)) for n in range(100)]  # type: ignore[misc]
    futures[-1].result(5)
    assert done == list(range(100))
    failed = work_thread.submit(lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        failed.result(5)
    assert work_thread.end(5)
