"""An annotation says how much of the object's past was known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from broker.publish.annotate import _history
from broker.records import Alert, ObjectState
from broker.surveys import Decoder
from broker.surveys.simulator import simulate_alerts
from tests.unit.surveys.test_decoder import alerts_of, ztf
from tests.unit.surveys.test_flags import rubin

PACKETS = [a.payload for a in simulate_alerts(1, 20, seed=4)]
LAST = Decoder().decode(PACKETS[-1])[0]
assert isinstance(LAST, Alert)
START = float(LAST.light_curve.mjd[0])


@pytest.mark.parametrize(
    ("counted", "first", "remembered", "history"),
    [
        (None, None, None, ""),  # a table
        (None, None, 0, "packet"),
        (1, LAST.mjd, 0, "packet"),
        (500, START + 1, 0, "packet"),  # all of them within the packet's window, as far as they were alerts
        (1, START - 900, 0, "packet"),
        (500, START - 900, 0, "missing"),
        (500, START - 900, 7, "remembered"),
    ],
)
def test_history(counted: int | None, first: float | None, remembered: int | None, history: str) -> None:
    alert = replace(LAST, survey_detections=counted, first_detected=first)
    state = ObjectState("a", 0.0, 0.0, alert.light_curve, remembered=remembered)
    assert _history(alert, state) == history


def test_what_the_surveys_say_of_the_past_is_read() -> None:
    (alert,) = alerts_of(Decoder().decode(ztf(candidate={"ndethist": 37, "jdstarthist": 2_458_300.75})))
    assert (alert.survey_detections, alert.first_detected) == (37, 58_300.25)
    (alert,) = alerts_of(Decoder().decode(ztf(candidate={"ndethist": -999, "jdstarthist": -999.0})))
    assert (alert.survey_detections, alert.first_detected) == (None, None)
    (alert,) = alerts_of(Decoder().decode(rubin(1101, [{}])))
    assert (alert.survey_detections, alert.first_detected) == (None, None)
