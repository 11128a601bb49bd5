"""Everything with TLS and users of the least rights, from the files that operators are given in deploy/security."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from confluent_kafka import Producer

from broker.embedded.ports import free_port
from broker.embedded.redis import RedisServer
from broker.records import METADATA_FEATURES, Alert
from broker.surveys import Decoder
from broker.surveys.simulator import simulate_alerts
from deploy.local.kafka_server import KafkaSecurity, KafkaServer, find_kafka_home
from deploy.local.triton_server import TritonServer, triton_installed
from tests.faults.certificates import Authority
from tests.random_models import MODEL_REPO
from tests.redis_keys import key_at

EXAMPLES = Path(__file__).resolve().parents[2] / "deploy" / "security"
PACKETS = [a.payload for a in simulate_alerts(12, 20, seed=5)]
ALERTS = [a for payload in PACKETS for a in Decoder().decode(payload) if isinstance(a, Alert)]
SERVICE, OPERATOR, SUBSCRIBER = "trifid", "trifid-operator", "astronomer"
# Passwords of Redis have in them what has a meaning in URLs.
KAFKA_PASSWORDS = {
    "admin": "hush-kafka-0",
    SERVICE: "hush-kafka-1",
    OPERATOR: "hush-kafka-2",
    SUBSCRIBER: "hush-kafka-3",
}
REDIS_PASSWORDS = {
    "admin": "hush/redis#0",
    SERVICE: "hush/redis@1#?:%",
    OPERATOR: "hush redis&2",
    "weak": "hush-redis-3",
}
WRONG = "hush-that-is-wrong"
SECRETS = [*KAFKA_PASSWORDS.values(), *REDIS_PASSWORDS.values(), WRONG]


@dataclass
class Site:
    """The servers, and whatever is needed to connect to them."""

    folder: Path
    kafka: KafkaServer
    redis: RedisServer
    triton: TritonServer
    authority: Authority
    stranger: Authority
    """Another authority, whom no server is certified by."""
    client: tuple[Path, Path]
    """Certificate and key of the service."""
    metrics_port: int = field(default_factory=free_port)

    def environment(self, kafka_user: str = SERVICE, redis_user: str = SERVICE, **variables: str) -> dict[str, str]:
        """The settings of a user, all from variables and files of secrets; ``variables`` win."""
        settings = {
            "KAFKA__BOOTSTRAP_SERVERS": self.kafka.bootstrap,
            "KAFKA__SECURITY_PROTOCOL": "SASL_SSL",
            "KAFKA__SASL_MECHANISM": "SCRAM-SHA-512",
            "KAFKA__SASL_USERNAME": kafka_user,
            "KAFKA__SASL_PASSWORD_FILE": self.secret(KAFKA_PASSWORDS[kafka_user]),
            "KAFKA__SSL_CA_LOCATION": str(self.authority.certificate),
            "KAFKA__WORKER_ID": "one",
            # Kafka gives a static member that is back in time the partitions of before, even where it subscribes to
            # other topics now (KAFKA-12759), as the tests' workers do.
            "KAFKA__STATIC_MEMBERSHIP": "false",
            "REDIS__URL": self.redis.url,
            "REDIS__USERNAME": redis_user,
            "REDIS__PASSWORD_FILE": self.secret(REDIS_PASSWORDS[redis_user]),
            "REDIS__CA_LOCATION": str(self.authority.certificate),
            "INFERENCE__ENGINE": "triton",
            "TRITON__URL": self.triton.grpc_url,
            "TRITON__TLS": "true",
            "TRITON__ROOT_CERTIFICATES": str(self.authority.certificate),
            "TRITON__CERTIFICATE_CHAIN": str(self.client[0]),
            "TRITON__PRIVATE_KEY": str(self.client[1]),
            "PIPELINE__FIRST_BACKOFF_S": "0.2",
            "PIPELINE__MAX_BACKOFF_S": "1",
            "METRICS__ADDRESS": "127.0.0.1",
            "METRICS__PROBE_INTERVAL_S": "1",
            "METRICS__PORT": str(self.metrics_port),
        } | variables
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TRIFID_")}
        places = {name: os.environ[name] for name in ("TRIFID_KAFKA_HOME", "TRIFID_TRITON_VENV") if name in os.environ}
        return inherited | places | {f"TRIFID_{name}": value for name, value in settings.items() if value}

    def secret(self, text: str) -> str:
        """A file that holds it, as Docker and Kubernetes mount them."""
        path = self.folder / hashlib.sha256(text.encode()).hexdigest()[:16]
        path.write_text(f"{text}\n")
        return str(path)

    def get(self, path: str) -> str:
        """What the service's HTTP server answers, nothing where there is none yet."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/{path}", timeout=60) as response:
                return str(response.read().decode())
        except urllib.error.HTTPError as error:
            with error:
                return error.read().decode()
        except OSError:
            return ""

    def wait_for(self, path: str, text: str, seconds: float = 300.0) -> None:
        """Until the service's HTTP server says so."""
        end = time.monotonic() + seconds
        while text not in (answer := self.get(path)):
            assert not told(answer)
            assert time.monotonic() < end, f"{text!r} is not in:\n{answer}"
            time.sleep(0.2)

    def trifid(self, environment: dict[str, str], *arguments: str) -> str:
        """Run a command to its end, which has to be a good one."""
        result = subprocess.run(
            [sys.executable, "-m", "broker.cli", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert not told(result.stdout + result.stderr)
        assert result.returncode == 0, result.stderr
        return result.stdout


class Worker:
    """``trifid run``, with its output."""

    def __init__(self, environment: dict[str, str], log: Path, *arguments: str) -> None:
        self._log = log
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "broker.cli", "run", *arguments], env=environment, stdout=out, stderr=out
            )

    @property
    def output(self) -> str:
        return self._log.read_text()

    def wait_for(self, text: str, seconds: float = 300.0) -> None:
        end = time.monotonic() + seconds
        while text not in self.output:
            assert time.monotonic() < end, f"{text!r} is not in:\n{self.output[-3000:]}"
            time.sleep(0.2)

    def ends(self) -> int | None:
        """Its exit code; None where it does not end by itself."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(300)
        return None

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(300) == 0, self.output[-3000:]

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def told(output: str) -> list[str]:
    """Secrets that are in some output, however they are written."""
    return [secret for secret in SECRETS if secret in output or quote(secret, safe="") in output]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    if find_kafka_home() is None:
        pytest.skip("no Apache Kafka with Java here (set TRIFID_KAFKA_HOME)")
    if not triton_installed():
        pytest.skip("no Triton here: run `python -m deploy.local.triton_server setup`")
    folder = tmp_path_factory.mktemp("site")
    authority, stranger = Authority(folder, "authority"), Authority(folder, "stranger")
    kafka = KafkaServer(security=KafkaSecurity(authority.server("kafka"), KAFKA_PASSWORDS, "admin"))
    redis = RedisServer(
        persistent=True,
        acl_file=users_file(folder),
        login=("admin", REDIS_PASSWORDS["admin"]),
        tls=authority.server("redis"),
    )
    triton = TritonServer(MODEL_REPO, tls=authority.server("triton", mutual=True))
    with kafka, redis, triton:
        kafka.create_topics(["alerts.ztf", "alerts.lsst", "not.ours"], partitions=2)
        grant = {"KAFKA_ACLS": " ".join(kafka.tool_command("acls")), "PATH": os.environ["PATH"]}
        subprocess.run([str(EXAMPLES / "kafka-acls.sh")], env=grant, check=True, capture_output=True, timeout=400)
        yield Site(folder, kafka, redis, triton, authority, stranger, authority.issue("service"))


def users_file(folder: Path) -> Path:
    """The example with passwords, and a user who may only read."""
    text = (EXAMPLES / "redis-users.acl").read_text()
    for place, user in (("ADMIN", "admin"), ("TRIFID", SERVICE), ("OPERATOR", OPERATOR), ("WEB", "weak")):
        text = text.replace(f"@{place}_SHA256@", hashlib.sha256(REDIS_PASSWORDS[user].encode()).hexdigest())
    assert "@" not in text.replace("+@all", "").replace("-@all", "")
    weak = hashlib.sha256(REDIS_PASSWORDS["weak"].encode()).hexdigest()
    path = folder / "users.acl"
    path.write_text(f"{text}user weak on #{weak} ~trifid:* -@all +ping +client|setinfo +eval +get +mget +hgetall\n")
    return path


def archive(folder: Path, packets: list[bytes]) -> str:
    path = folder / "night.tar.gz"
    with tarfile.open(path, "w:gz") as out:
        for number, payload in enumerate(packets):
            member = tarfile.TarInfo(f"{number}.avro")
            member.size = len(payload)
            out.addfile(member, io.BytesIO(payload))
    return str(path)


def catalogue(folder: Path) -> str:
    """A catalogue that has every object, with enough values to be of use."""
    stars = {alert.object_id: (alert.ra, alert.dec) for alert in ALERTS}
    ra, dec = np.array(list(stars.values())).T
    path = folder / "gaia.parquet"
    pq.write_table(
        pa.table({"ra": ra, "dec": dec, **{name: np.full(len(ra), 5.0) for name in METADATA_FEATURES}}),
        path,
    )
    return str(path)


def spectrum(folder: Path, alert: Alert) -> tuple[str, ...]:
    wavelength = np.arange(3900.0, 8900.0, 2.0)
    path = folder / "spectrum.csv"
    rows = (f"{w},{1 + w / 9000:.4f},0.01" for w in wavelength)
    path.write_text("\n".join(["wavelength,flux,error", *rows]))
    return str(path), "--ra", str(alert.ra), "--dec", str(alert.dec)


def test_users_of_the_least_rights_get_everything_done(site: Site, tmp_path: Path) -> None:
    operator = site.environment(OPERATOR, OPERATOR, KAFKA__CREATE_TOPICS="false")
    assert "sources" in site.trifid(operator, "catalog", "load", "gaia", catalogue(tmp_path))
    site.trifid(operator, "catalog", "load", "gaia", catalogue(tmp_path), "--replace")
    site.trifid(operator, "catalog", "load", "other", catalogue(tmp_path))
    site.trifid(operator, "catalog", "drop", "other")
    site.trifid(operator, "catalog", "list")
    site.trifid(operator, "reference", "load")
    site.trifid(operator, "spectra", "load", *spectrum(tmp_path, ALERTS[0]))
    with site.redis.client() as admin:
        # Values that cannot be read are set aside: that takes rights of its own.
        for key in (key_at(ALERTS[0]), f"trifid:ztf:{ALERTS[0].object_id}:sp"):
            admin.set(key, b"damaged")

    with Worker(site.environment(), tmp_path / "run.log", "--log-level", "DEBUG") as worker:
        site.trifid(operator, "replay", archive(tmp_path, PACKETS), "--topic", "alerts.ztf")
        subscriber = site.environment(SUBSCRIBER)
        read = site.trifid(
            subscriber, "subscribe", "trifid.ztf.all", "--from-beginning", "--limit", str(len(PACKETS)), "--json"
        )
        records = [json.loads(line) for line in read.splitlines()]
        assert Counter(record["alertId"] for record in records) == Counter(alert.alert_id for alert in ALERTS)
        assert "metadata" in records[-1]["modalities"]

        site.trifid(operator, "spectra", "send", *spectrum(tmp_path, ALERTS[-1]))
        again = site.trifid(
            subscriber, "subscribe", "trifid.ztf.all", "--from-beginning", "--limit", str(len(PACKETS) + 1)
        )
        assert len(again.splitlines()) == len(PACKETS) + 2
        site.trifid(operator, "state", "migrate")

        producer = Producer(site.kafka.client_options(OPERATOR))
        producer.produce("alerts.ztf", b"no alert")
        assert producer.flush(120) == 0
        site.wait_for("metrics", 'trifid_alerts_out_total{outcome="dead_lettered",survey="unknown"} 1.0')
        assert "neither an Avro container" in site.trifid(operator, "deadletter", "show")
        assert "replayed 1" in site.trifid(operator, "deadletter", "replay")
        site.wait_for("metrics", 'trifid_alerts_out_total{outcome="dead_lettered",survey="unknown"} 2.0')
        assert not told(site.get("metrics"))
        worker.stop()
        assert "reconciled" in worker.output
        assert "cannot be read and is set aside" in worker.output
        assert "not allow" not in worker.output
    assert not told(worker.output)
    with site.redis.client() as admin:
        refused = [(e["username"], e["reason"], e["context"], e["object"]) for e in admin.acl_log()]
    assert not refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"KAFKA__SASL_PASSWORD_FILE": WRONG}, "SASL authentication error: Authentication failed"),
        ({"KAFKA__SSL_CA_LOCATION": "stranger"}, "certificate verify failed"),
        ({"REDIS__PASSWORD_FILE": WRONG}, "Redis refuses the login: invalid username-password pair"),
        ({"REDIS__CA_LOCATION": "stranger"}, "Redis is unavailable: Error 1 connecting to 127.0.0.1"),
        ({"TRITON__ROOT_CERTIFICATES": "stranger"}, "CERTIFICATE_VERIFY_FAILED"),
        ({"TRITON__CERTIFICATE_CHAIN": "", "TRITON__PRIVATE_KEY": ""}, "Socket closed"),
    ],
    ids=["Kafka's password", "Kafka's authority", "Redis's password", "Redis's authority", "Triton's authority",
         "no certificate for Triton"],
)  # fmt: skip
def test_a_refused_login_is_told_and_waited_for(
    site: Site, tmp_path: Path, change: dict[str, str], message: str
) -> None:
    """Passwords and certificates are changed on one side first: the service goes on when the other side follows."""
    files = {WRONG: site.secret(WRONG), "stranger": str(site.stranger.certificate)}
    environment = site.environment(**{name: files.get(value, value) for name, value in change.items()})
    with Worker(environment, tmp_path / "run.log", "--log-level", "DEBUG") as worker:
        worker.wait_for(message)
        worker.wait_for("waiting")
        site.wait_for("readyz", message.removeprefix("Redis is unavailable: "))
        assert worker.process.poll() is None
        worker.stop()
    assert "Traceback" not in worker.output
    assert not told(worker.output)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"KAFKA__INPUT_TOPICS": "not.ours"}, "topic not.ours: "),
        ({"PUBLISH__TOPIC_PREFIX": "not.ours"}, "creating topic not.ours."),
        ({"PUBLISH__TOPIC_PREFIX": "not.ours", "KAFKA__CREATE_TOPICS": "false"}, "topic not.ours."),
        ({"KAFKA__GROUP_ID": "not.ours"}, "Transactional Id authorization failed"),
        ({"KAFKA__GROUP_ID": "not.ours", "KAFKA__DELIVERY": "at-least-once"}, "Group authorization failed"),
        ({"REDIS__USERNAME": "weak"}, "Redis does not allow it: "),
    ],
    ids=["input", "creation", "output", "transactional id", "group", "Redis"],
)
def test_a_missing_right_ends_the_service_and_is_named(
    site: Site, tmp_path: Path, change: dict[str, str], message: str
) -> None:
    """Waiting would not bring it; and it is no fault of the alerts, which must not become dead letters.

    Of the outputs either the first that is written to is named, or that of dead letters, which a worker asks Kafka
    about while it has no partition yet.
    """
    operator = site.environment(OPERATOR, OPERATOR, KAFKA__CREATE_TOPICS="false")
    site.trifid(operator, "replay", archive(tmp_path, PACKETS[:1]), "--topic", "alerts.ztf")
    site.trifid(operator, "reference", "load")  # which the service does by itself, if it may
    if change.get("REDIS__USERNAME"):
        change = {**change, "REDIS__PASSWORD_FILE": site.secret(REDIS_PASSWORDS["weak"])}
    with Worker(site.environment(**change), tmp_path / "run.log") as worker:
        assert worker.ends() == 2, worker.output
    (error,) = [line for line in worker.output.splitlines() if line.startswith("Error: ")]
    assert message in error, worker.output
    assert "dead-lettered 1" not in worker.output
    assert "Traceback" not in worker.output
    assert not told(worker.output)
