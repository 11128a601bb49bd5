"""`trifid state rebuild` on a real Redis that has lost its state."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import redis
from click.testing import CliRunner

from broker.cli import main
from broker.embedded.redis import RedisServer
from broker.records import Alert, ObjectState, ObservedSpectrum, Spectrum
from broker.spectra.message import write
from broker.state.redis import RedisStore
from broker.surveys import Decoder
from broker.surveys.simulator import simulate_alerts

PAYLOADS = [alert.payload for alert in simulate_alerts(6, 12, seed=21)]
ALERTS = [a for payload in PAYLOADS for a in Decoder().decode(payload) if isinstance(a, Alert)]
SPECTRUM = ObservedSpectrum(
    "one",
    ALERTS[0].ra,
    ALERTS[0].dec,
    ALERTS[0].mjd,
    Spectrum(np.arange(3850.0, 9000.0, 2.0), np.linspace(1, 2, 2575, dtype="f4"), np.full(2575, 0.01, "f4")),
    survey=ALERTS[0].survey,
    object_id=ALERTS[0].object_id,
)


def archive(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as out:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            out.addfile(entry, io.BytesIO(content))


def states(store: RedisStore) -> dict[str, ObjectState]:
    """By object, upon an alert that is in the state already."""
    latest = {alert.object_id: alert for alert in ALERTS}
    return dict(zip(latest, store.update(list(latest.values())), strict=True))


def test_the_state_of_all_objects_comes_back(
    tmp_path: Path, server: RedisServer, client: redis.Redis, store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIFID_REDIS__URL", server.url)
    store.put_observed([SPECTRUM])
    for alert in ALERTS:  # one by one, as a stream
        store.update([alert])
    before = states(store)
    client.flushall()
    names = {f"{n}.avro": payload for n, payload in enumerate([*PAYLOADS[30:], *PAYLOADS[:30]])}
    archive(tmp_path / "night.tar.gz", {**names, "spectrum.avro": write(SPECTRUM), "bad.avro": b"no alert"})

    result = CliRunner().invoke(main, ["state", "rebuild", "--from", str(tmp_path)])
    assert result.exit_code == 1  # of bad.avro
    assert (
        f"{len(ALERTS)} alerts and 1 spectra of {len(PAYLOADS) + 1} packets in the state, 1 not readable"
        in result.output
    )
    assert "bad.avro" in result.output
    after = states(store)
    assert set(after) == set(before)
    assert len(before) == 6
    for name, state in before.items():
        assert len(state.light_curve) == len(after[name].light_curve) >= 12
        for column in ("mjd", "flux", "flux_error", "band"):
            np.testing.assert_array_equal(getattr(state.light_curve, column), getattr(after[name].light_curve, column))
    assert after[ALERTS[0].object_id].spectrum is not None

    again = CliRunner().invoke(main, ["state", "rebuild", "--from", str(tmp_path)])
    assert again.exit_code == 1
    for name, state in states(store).items():
        np.testing.assert_array_equal(state.light_curve.mjd, before[name].light_curve.mjd)
