"""Workers that are killed, come, go, and have wrong clocks."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from broker.times import mjd_now
from tests.faults.conftest import NewCase
from tests.faults.harness import JOINED, check_recovery
from tests.faults.ledger import stream


@pytest.mark.timeout(1500)
def test_workers_killed_at_random_moments(new_case: NewCase, full: bool) -> None:
    """Two workers; kill -9 of one of them, or of both, while there is work to do, and a restart at once."""
    kills, chunk = (50, 160) if full else (5, 400)
    chance = random.Random(1)
    alerts = stream(kills * chunk, seed=1)
    with new_case("kills") as case:
        workers = [case.worker(name) for name in ("one", "two")]
        done, slowest = 0, 0.0
        while done < kills:
            for worker in workers:
                worker.wait_for(JOINED)
            before = case.ledger.accounted
            case.ledger.send(alerts[len(case.ledger.sent) :][:chunk])
            # Seldom before the first of them are out: that is a kill of a worker that has just come back.
            case.wait(before + chance.choice((0, 1, chunk // 4)))
            time.sleep(chance.uniform(0.0, 0.5))
            victims = chance.choice((workers[:1], workers[1:], workers))[: kills - done]
            for victim in victims:
                victim.kill()
            killed = time.monotonic()
            for victim in victims:
                victim.start()
            done += len(victims)
            case.wait(len(case.ledger.sent))
            slowest = max(slowest, max(o.time for o in case.ledger.outputs) - killed)
        case.ledger.send(alerts[len(case.ledger.sent) :])
        note = "recovery: the slowest, until all was out"
        case.finish(f"worker: kill -9, {done} times", slowest, note)
    check_recovery(slowest)


@pytest.mark.timeout(900)
def test_workers_come_and_go(new_case: NewCase, full: bool) -> None:
    """Rebalances under load: 1, 4 (or 8), 2 and 1 workers, some stopped and some killed."""
    most = 8 if full else 4
    alerts = stream(6000 if full else 2400, seed=2)
    with new_case("groups") as case:
        first = case.worker("w0")
        full_rate = case.begin(alerts, 0.1)
        later = [case.worker(f"w{number}") for number in range(1, most)]
        for worker in later:
            worker.wait_for(JOINED)
        for number, worker in enumerate(later[1:]):
            if number % 2:
                worker.kill()
            else:
                worker.stop()
        case.wait(min(len(alerts), case.ledger.accounted + 200))
        later[0].kill()
        changed = time.monotonic()
        case.wait(len(alerts))
        recovery = case.ledger.recovery(changed, full_rate)
        assert first.running
        case.finish(f"workers: 1, {most}, 2, 1", recovery, "since the last change")
    check_recovery(recovery)


@pytest.mark.timeout(900)
def test_clock_jumps(new_case: NewCase, full: bool, tmp_path: Path) -> None:
    """One worker's wall clock, as Python sees it, jumps 5 h ahead and 10 h back while it works."""
    alerts = stream(6000 if full else 2000, seed=8)
    clock = tmp_path / "hours"
    clock.write_text("0")
    environment = {"PYTHONPATH": str(Path(__file__).with_name("wrong_clock")), "WRONG_CLOCK_HOURS": str(clock)}
    with new_case("clock") as case:
        case.worker("jumps", environment=environment)
        case.worker("steady")
        third = len(alerts) // 3
        full_rate = case.begin(alerts[:third], 1.0)
        for end, hours in ((2 * third, "5"), (len(alerts), "-5")):
            # In one step: it is read all the while.
            clock.with_suffix(".new").write_text(hours)
            clock.with_suffix(".new").rename(clock)
            jumped = time.monotonic()
            case.ledger.send(alerts[len(case.ledger.sent) : end])
            case.wait(end)
        recovery = case.ledger.recovery(jumped, full_rate)
        ahead = {round(24 * (o.ingest_mjd - mjd_now())) for o in case.ledger.outputs}
        assert ahead == {-5, 0, 5}, f"the clock did not jump: {ahead}"
        assert all(worker.running for worker in case.workers), case.tails()
        case.finish("clock: 5 h ahead, then 10 h back", recovery, "since the last jump")
    check_recovery(recovery)
