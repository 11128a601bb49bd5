from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from broker.cli.spectra import spectra
from broker.records import ObservedSpectrum
from broker.spectra.message import read
from tests.unit.spectra import fake_files

STAR = fake_files.made_up()


class FakeStore:
    def __init__(self) -> None:
        self.stored: list[ObservedSpectrum] = []
        self.closed = False

    def close(self) -> None:
        self.closed = True

    def put_observed(self, spectra: Sequence[ObservedSpectrum]) -> None:
        self.stored += spectra


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> FakeStore:
    fake = FakeStore()
    monkeypatch.setattr("broker.build.build_store", lambda settings: fake, raising=False)
    return fake


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two spectra that can be used and, last, a file that is none."""
    (tmp_path / "a.fits").write_bytes(fake_files.lamost_dr5(STAR))
    (tmp_path / "b.fits").write_bytes(fake_files.sdss_dr17(STAR, np.zeros(len(STAR.flux), np.int32)))
    (tmp_path / "c.txt").write_text("no spectrum\n")
    return tmp_path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(spectra, list(map(str, arguments)), catch_exceptions=False)


def test_load_stores_what_can_be_read_and_lists_the_rest(store: FakeStore, folder: Path) -> None:
    result = run("load", folder)
    assert result.exit_code == 1
    assert [s.spectrum_id for s in store.stored] == ["lamost:101008", "sdss:266-51630-5"]
    assert "c.txt: no column wavelength" in result.stderr
    assert "2 spectra stored, 1 failed" in result.stderr
    assert store.closed


def test_load_ends_well_or_with_2(store: FakeStore, folder: Path) -> None:
    result = run("load", folder / "a.fits", "--survey", "ztf", "--object-id", "ZTF18abc", "--observed-frame")
    assert result.exit_code == 0
    assert (store.stored[0].survey, store.stored[0].object_id) == ("ztf", "ZTF18abc")
    assert store.stored[0].spectrum.wavelength[0] == pytest.approx(3700, rel=3e-7)
    assert run("load", folder / "c.txt").exit_code == 2
    missing = run("load", folder / "d.txt")
    assert missing.exit_code == 2
    assert "d.txt: No such file" in missing.stderr


def test_many_are_stored_in_parts(store: FakeStore, folder: Path) -> None:
    assert run("load", *[folder / "a.fits"] * 101).exit_code == 0
    assert len(store.stored) == 101


@pytest.mark.parametrize("half", [("--ra", 1), ("--survey", "ztf"), ("--object-id", "x")])
def test_options_that_belong_together(store: FakeStore, folder: Path, half: tuple[str, object]) -> None:
    result = run("load", folder / "a.fits", *half)
    assert result.exit_code == 2
    assert "give both or neither" in result.stderr


def test_a_table_with_all_said_by_options(store: FakeStore, tmp_path: Path) -> None:
    wavelength = np.arange(380.0, 905.0, 0.2)
    rows = (f"{w},{f},{0.1}" for w, f in zip(wavelength, 1 + wavelength / 1000, strict=True))
    (tmp_path / "t.csv").write_text("wave,flux,err\n" + "\n".join(rows))
    arguments = ("load", tmp_path / "t.csv", "--ra", 10, "--dec", -5, "--redshift", 0.001, "--air")
    assert "wavelength unit" in run(*arguments).stderr
    assert run(*arguments, "--wavelength-unit", "nm", "--flux-unit", "Jy").exit_code == 0
    [found] = store.stored
    assert (found.ra, found.dec, found.spectrum_id) == (10, -5, "file:t.csv")
    assert found.spectrum.wavelength[0] == pytest.approx(3801.08 / 1.001, abs=0.01)


def test_show(folder: Path) -> None:
    result = run("show", folder / "a.fits", folder / "b.fits")
    assert result.exit_code == 0
    header, first, second = result.stdout.splitlines()
    assert header.startswith("id")
    assert first.startswith("lamost:101008")
    assert "LAMOST, vacuum; rest, redshift 0.000300" in first
    assert "SDSS" in second
    result = run("show", folder, "--json")
    assert result.exit_code == 1
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [r["spectrum_id"] for r in records] == ["lamost:101008", "sdss:266-51630-5"]
    assert records[0]["pixels"] == len(STAR.flux)
    assert records[0]["good_pixels"] == len(STAR.flux) - 10
    assert records[0]["signal_to_noise"] == pytest.approx(100, rel=0.1)
    assert "no column wavelength" in result.stderr


def test_send(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    sent: list[tuple[str, bytes]] = []

    class FakeReplay:
        def __init__(self, kafka: object, topic: str) -> None:
            self.topic = topic

        def __enter__(self) -> FakeReplay:
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def send(self, payload: bytes) -> None:
            sent.append((self.topic, payload))

    monkeypatch.setattr("broker.streaming.replay.Replay", FakeReplay)
    result = run("send", folder / "a.fits", folder / "b.fits")
    assert result.exit_code == 0
    assert "2 spectra sent to spectra" in result.stderr
    assert [topic for topic, _ in sent] == ["spectra"] * 2
    assert [read(payload)[0].spectrum_id for _, payload in sent] == ["lamost:101008", "sdss:266-51630-5"]
