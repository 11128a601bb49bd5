"""Networks that are slow, silent or gone."""

from __future__ import annotations

import time

import pytest

from tests.faults.conftest import NewCase
from tests.faults.harness import GIVE_UP_S, JOINED, SESSION_S, TRANSACTION_S, Kafka, check_recovery
from tests.faults.ledger import Sent, stream
from tests.faults.proxy import BadNetwork

ROUND_TRIP_S = 0.3
HANG_S = 20.0
PARTED_S = max(SESSION_S, TRANSACTION_S) + 5.0


@pytest.fixture
def alerts(full: bool) -> list[Sent]:
    return stream(6000 if full else 2000, seed=6)


def redis_through(network: BadNetwork) -> dict[str, dict[str, str]]:
    return {"redis": {"url": f"redis://127.0.0.1:{network.port}/0"}}


@pytest.mark.timeout(900)
def test_redis_that_is_slow(new_case: NewCase, alerts: list[Sent]) -> None:
    """300 ms a round trip, for as long as a tenth of the alerts take."""
    with BadNetwork() as network, new_case("slow") as case:
        network.target_port = case.redis.port
        case.worker("one", redis_through(network))
        full_rate = case.begin(alerts)
        network.delay(ROUND_TRIP_S)
        slow = case.ledger.accounted
        case.wait(slow + len(alerts) // 10)
        network.heal()
        healed = time.monotonic()
        case.wait(len(alerts))
        recovery = case.ledger.recovery(healed, full_rate)
        case.finish("Redis: 300 ms a round trip", recovery, "since it was quick again")
    check_recovery(recovery)


@pytest.mark.timeout(900)
def test_redis_that_hangs(new_case: NewCase, alerts: list[Sent]) -> None:
    """20 s without an answer, which is longer than its timeout and the session's; then the answers come."""
    with BadNetwork() as network, new_case("hangs") as case:
        network.target_port = case.redis.port
        case.worker("one", redis_through(network))
        full_rate = case.begin(alerts)
        network.hold()
        time.sleep(HANG_S)
        network.heal()
        healed = time.monotonic()
        case.wait(len(alerts))
        recovery = case.ledger.recovery(healed, full_rate)
        (worker,) = case.workers
        assert "partitions revoked" not in worker.output
        case.finish("Redis: hangs for 20 s", recovery, "since it answered; the worker kept its partitions")
    check_recovery(recovery)


@pytest.mark.timeout(900)
def test_redis_cut_off(new_case: NewCase, alerts: list[Sent]) -> None:
    """Connections end and none can be made; for one of two workers only."""
    with BadNetwork() as network, new_case("cut") as case:
        network.target_port = case.redis.port
        case.worker("one", redis_through(network))
        case.worker("two")
        full_rate = case.begin(alerts)
        network.cut()
        time.sleep(PARTED_S)
        network.heal()
        healed = time.monotonic()
        case.wait(len(alerts))
        recovery = case.ledger.recovery(healed, full_rate)
        case.finish("Redis: cut off for 15 s, one worker of two", recovery, "since it was back")
    check_recovery(recovery)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("how", ["hold", "cut"])
def test_kafka_out_of_reach_of_one_worker(new_case: NewCase, kafka: Kafka, alerts: list[Sent], how: str) -> None:
    """For longer than its session and its transaction last: the other one takes over, and it is fenced or goes on."""
    half = len(alerts) // 2
    with new_case(f"parted-{how}") as case:
        parted = case.worker("parted", {"kafka": {"bootstrap_servers": kafka.through_network}})
        case.worker("other")
        try:
            full_rate = case.begin(alerts[:half], 0.4)
            kafka.network.hold() if how == "hold" else kafka.network.cut()
            time.sleep(PARTED_S)
        finally:
            kafka.network.heal()
        healed = time.monotonic()
        joined = parted.output.count(JOINED)
        # The other worker has done what there was: this is for both again.
        case.ledger.send(alerts[half:])
        while not case.restarts and parted.output.count(JOINED) == joined:
            assert time.monotonic() < healed + GIVE_UP_S, case.tails()
            case.look_after()
            time.sleep(0.1)
        case.wait(len(alerts), restart=True)
        recovery = case.ledger.recovery(healed, full_rate)
        assert case.workers[1].running
        what = "silent" if how == "hold" else "cut off"
        fate = "was fenced and started again" if case.restarts else "went on by itself"
        case.finish(f"Kafka: {what} for 15 s, one worker of two", recovery, f"since it was back; the worker {fate}")
    check_recovery(recovery)
