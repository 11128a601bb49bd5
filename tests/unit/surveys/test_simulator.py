from __future__ import annotations

import numpy as np

from broker.records import Alert, PhotometryKind
from broker.surveys import Decoder
from broker.surveys.simulator import simulate_alerts


def decode(decoder: Decoder, payload: bytes) -> Alert:
    (alert,) = decoder.decode(payload)
    assert isinstance(alert, Alert)
    return alert


def test_simulated_packets_are_alerts_of_ztf() -> None:
    decoder = Decoder()
    simulated = list(simulate_alerts(30, 40, seed=1))
    alerts = [decode(decoder, s.payload) for s in simulated]
    assert {a.survey for a in alerts} == {"ztf"}
    assert {a.schema_version for a in alerts} == {"4.02"}
    assert len({a.alert_id for a in alerts}) == len(alerts)
    assert [a.object_id for a in alerts] == [s.object_id for s in simulated]
    assert np.all(np.diff([a.mjd for a in alerts]) >= 0)
    kinds = np.concatenate([a.light_curve.kind for a in alerts])
    assert set(kinds.tolist()) == set(PhotometryKind)


def test_the_seed_decides() -> None:
    first = [a.payload for a in simulate_alerts(5, 10, seed=1)]
    assert first == [a.payload for a in simulate_alerts(5, 10, seed=1)]
    assert first != [a.payload for a in simulate_alerts(5, 10, seed=2)]


def test_the_last_object_may_be_an_rr_lyrae_star_of_a_long_period() -> None:
    plain, special = (list(simulate_alerts(4, 30, seed=1, long_rr_lyrae=given)) for given in (False, True))
    last = [s for s in special if s.object_id == "ZTF18aaaaaad"]
    assert {s.class_name for s in last} == {"RRAB"}
    alerts = [decode(Decoder(), s.payload) for s in last]
    assert {(a.ra, a.dec) for a in alerts} == {(15.0, 25.0)}
    others = ("ZTF18aaaaaaa", "ZTF18aaaaaab", "ZTF18aaaaaac")
    assert [s for s in special if s.object_id in others] == [s for s in plain if s.object_id in others]


def test_forced_photometry_agrees_with_the_detections() -> None:
    decoder = Decoder()
    for simulated in simulate_alerts(10, 30, seed=4):
        curve = decode(decoder, simulated.payload).light_curve
        forced = {t: f for t, f, k in zip(curve.mjd, curve.flux, curve.kind, strict=True) if k == PhotometryKind.FORCED}
        for time, flux, kind in zip(curve.mjd, curve.flux, curve.kind, strict=True):
            if kind == PhotometryKind.DETECTION and time in forced:
                np.testing.assert_allclose(flux, forced[time], rtol=1e-4)


def test_visits_to_an_object_are_an_hour_apart() -> None:
    """So that the time and the object make an alert's number unique."""
    decoder = Decoder()
    for simulated in simulate_alerts(300, 12, seed=5):
        curve = decode(decoder, simulated.payload).light_curve
        assert np.all(np.diff(np.unique(curve.mjd)) > 0.999 / 24)
