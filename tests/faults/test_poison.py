"""Messages that are no alerts, and alerts that make the pipeline raise."""

from __future__ import annotations

import random
import time

import pytest

from tests.faults.conftest import NewCase
from tests.faults.ledger import Sent, stream
from tests.faults.poisoned_survey import BREAKS, RAISES

EVERY = 50


@pytest.mark.timeout(900)
def test_poison(new_case: NewCase, full: bool) -> None:
    """Every 50th message is garbage of some kind, and a module of a survey fails on some alerts."""
    chance = random.Random(7)
    alerts = stream(6000 if full else 2000, seed=7)
    messages: list[Sent] = []
    for number, alert in enumerate(alerts):
        messages.append(alert)
        if number % EVERY == 0:
            cut = alert.payload[: chance.randrange(len(alert.payload))]
            garbage = chance.choice((b"", chance.randbytes(500), cut, b"\x00\x00\x0f\x42\x40 no such schema"))
            messages.append(Sent(garbage, alert.key))
    ids = {alert.alert_id for alert in alerts if alert.alert_id is not None}
    poisoned = {number for number in ids if number % RAISES == 0 or number % BREAKS == 0}
    garbage = len(messages) - len(alerts)
    with new_case("poison") as case:
        started = time.monotonic()
        case.worker("one", {"": {"surveys": ["tests.faults.poisoned_survey"]}})
        case.ledger.send(messages)
        case.wait(len(messages))
        took = time.monotonic() - started
        letters = case.ledger.letters
        out = {output.alert_id for output in case.ledger.outputs}
        assert out == ids - poisoned
        assert len(letters) == garbage + len(poisoned)
        assert all(letter.reason for letter in letters)
        reasons = " ".join(letter.reason for letter in letters)
        assert "ZeroDivisionError: a poisoned alert in the decoder" in reasons
        assert "NoneType" in reasons
        case.finish(
            "poison: garbage and alerts that raise", None, f"{len(messages) / took:.0f} messages/s with the start"
        )
