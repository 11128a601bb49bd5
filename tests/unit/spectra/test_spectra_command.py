"""``trifid spectra``: into a real Redis, to librdkafka's mock of Kafka, and to the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import redis
from click.testing import CliRunner, Result
from confluent_kafka import Consumer, TopicPartition

from broker.cli.spectra import spectra
from broker.embedded.kafka_mock import KafkaMock
from broker.embedded.redis import RedisServer
from broker.records import Spectrum
from broker.spectra.message import read
from broker.state.encoding import decode_spectrum
from broker.state.keys import base, sky_key
from broker.state.places import StoredPlace
from tests.unit.spectra import fake_files

STAR = fake_files.made_up()


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


class Stored:
    """What a Redis has of spectra, by their ids."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    @property
    def where(self) -> dict[str, str]:
        """``of:<survey>:<object id>`` or ``at:<home>:<cell>``."""
        keys = sorted(key.decode() for key in self._client.scan_iter("trifid:where:*"))
        return {key.removeprefix("trifid:where:"): self._value(key).decode() for key in keys}

    def spectrum(self, spectrum_id: str) -> Spectrum:
        kind, _, rest = self.where[spectrum_id].partition(":")
        home = rest.partition(":")[0]
        return decode_spectrum(
            self._value(f"trifid:{rest}:sp" if kind == "of" else f"{base('trifid', home)}:spectrum:{spectrum_id}")
        )

    def place(self, spectrum_id: str) -> StoredPlace:
        _, home, cell = self.where[spectrum_id].split(":")
        packed = self._client.hget(sky_key("trifid", home, "spectra", cell), spectrum_id)
        assert isinstance(packed, bytes)
        return StoredPlace.unpack(packed)

    def _value(self, key: str) -> bytes:
        value = self._client.get(key)
        assert isinstance(value, bytes), key
        return value


@pytest.fixture
def store(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stored]:
    monkeypatch.setenv("TRIFID_REDIS__URL", server.url)
    with redis.Redis.from_url(server.url) as client:
        client.flushall()
        yield Stored(client)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two spectra that can be used and, last, a file that is none."""
    (tmp_path / "a.fits").write_bytes(fake_files.lamost_dr5(STAR))
    (tmp_path / "b.fits").write_bytes(fake_files.sdss_dr17(STAR, np.zeros(len(STAR.flux), np.int32)))
    (tmp_path / "c.txt").write_text("no spectrum\n")
    return tmp_path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(spectra, list(map(str, arguments)), catch_exceptions=False)


def test_load_stores_what_can_be_read_and_lists_the_rest(store: Stored, folder: Path) -> None:
    result = run("load", folder)
    assert result.exit_code == 1
    assert list(store.where) == ["lamost:101008", "sdss:266-51630-5"]
    assert "c.txt: no column wavelength" in result.stderr
    assert "2 spectra stored, 1 failed" in result.stderr


def test_load_ends_well_or_with_2(store: Stored, folder: Path) -> None:
    result = run("load", folder / "a.fits", "--survey", "ztf", "--object-id", "ZTF18abc", "--observed-frame")
    assert result.exit_code == 0
    assert store.where == {"lamost:101008": "of:ztf:ZTF18abc"}
    assert store.spectrum("lamost:101008").wavelength[0] == pytest.approx(3700, rel=3e-7)
    assert run("load", folder / "c.txt").exit_code == 2
    missing = run("load", folder / "d.txt")
    assert missing.exit_code == 2
    assert "d.txt: No such file" in missing.stderr


def test_many_are_stored_in_parts(store: Stored, tmp_path: Path) -> None:
    wavelength = np.arange(3800.0, 9050.0, 8.0)
    text = "\n".join(f"{w} {1 + w / 9000}" for w in wavelength)
    for number in range(101):
        (tmp_path / f"s{number}.txt").write_text(text)
    options = ("--ra", 10, "--dec", -5, "--wavelength-unit", "Angstrom", "--observed-frame")
    result = run("load", tmp_path, *options)
    assert (result.exit_code, len(store.where)) == (0, 101), result.output
    assert "101 spectra stored\n" in result.stderr


@pytest.mark.parametrize("half", [("--ra", 1), ("--survey", "ztf"), ("--object-id", "x")])
def test_options_that_belong_together(store: Stored, folder: Path, half: tuple[str, object]) -> None:
    result = run("load", folder / "a.fits", *half)
    assert result.exit_code == 2
    assert "give both or neither" in result.stderr


def test_a_table_with_all_said_by_options(store: Stored, tmp_path: Path) -> None:
    wavelength = np.arange(380.0, 905.0, 0.2)
    rows = (f"{w},{f},{0.1}" for w, f in zip(wavelength, 1 + wavelength / 1000, strict=True))
    (tmp_path / "t.csv").write_text("wave,flux,err\n" + "\n".join(rows))
    arguments = ("load", tmp_path / "t.csv", "--ra", 10, "--dec", -5, "--redshift", 0.001, "--air")
    assert "wavelength unit" in run(*arguments).stderr
    assert run(*arguments, "--wavelength-unit", "nm", "--flux-unit", "Jy").exit_code == 0
    place = store.place("file:t.csv")
    assert (place.ra, place.dec) == (10, -5)
    assert store.spectrum("file:t.csv").wavelength[0] == pytest.approx(3801.08 / 1.001, abs=0.01)


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


def test_send(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIFID_KAFKA__CREATE_TOPICS", "false")  # which the mock cannot do
    with KafkaMock() as kafka:
        kafka.create_topics(["spectra"])
        result = run("send", folder / "a.fits", folder / "b.fits", "--bootstrap-servers", kafka.bootstrap)
        assert result.exit_code == 0
        assert "2 spectra sent to spectra" in result.stderr
        consumer = Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": "test"})
        partitions = consumer.list_topics("spectra", 10).topics["spectra"].partitions
        consumer.assign([TopicPartition("spectra", number, 0) for number in partitions])
        found = consumer.consume(2, 60)
        consumer.close()
    sent = {read(message.value() or b"")[0].spectrum_id for message in found}
    assert sent == {"lamost:101008", "sdss:266-51630-5"}
