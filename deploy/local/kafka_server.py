"""Apache Kafka on one node (KRaft), from a folder with its jars and ``kafka.sh``, on Java 17 or newer."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from broker.embedded.ports import free_port
from broker.embedded.process import ServerProcess, temporary_folder
from broker.embedded.tls import ServerTls
from broker.errors import ConfigurationError, DependencyUnavailableError

_CHECKOUT: Final = Path(__file__).resolve().parents[2]
_START_TIMEOUT: Final = 240.0
_STOP_TIMEOUT: Final = 30.0
_ADMIN_TIMEOUT: Final = 60.0
_FORMAT_ATTEMPTS: Final = 4
_MECHANISM: Final = "SCRAM-SHA-512"
_TOOL_TIMEOUT: Final = 180.0


@dataclass(frozen=True, slots=True)
class KafkaSecurity:
    """TLS, users who log in with SCRAM-SHA-512, and nobody but the administrator allowed to do anything yet.

    Clients show no certificate, whatever ``tls.mutual`` says.
    """

    tls: ServerTls
    users: Mapping[str, str]
    """Passwords by name."""
    admin: str
    """Which of them may do everything; the broker itself uses it, too."""


def find_kafka_home() -> Path | None:
    """Folder of ``kafka.sh``: TRIFID_KAFKA_HOME, else ``../shared/kafka`` beside the checkout, else None.

    Also None where there is no Java to run it.
    """
    home = Path(os.environ.get("TRIFID_KAFKA_HOME", _CHECKOUT.parent / "shared" / "kafka"))
    # As kafka.sh does: JAVA_HOME's, else the one on PATH.
    java = os.path.join(os.environ["JAVA_HOME"], "bin", "java") if os.environ.get("JAVA_HOME") else "java"
    return home if shutil.which(java) and (home / "kafka.sh").is_file() else None


class KafkaServer(ServerProcess):
    """A Kafka broker on a free port of the loopback interface; topics are not created by themselves."""

    def __init__(
        self,
        data: Path | None = None,
        *,
        heap: str = "256m",
        settings: Mapping[str, str] | None = None,
        security: KafkaSecurity | None = None,
    ) -> None:
        """Prepare a broker; raises ConfigurationError where there is no Kafka or no Java.

        ``data`` keeps topics beyond the broker's life, else they go with this object; ``settings`` are the
        broker's own (``server.properties``). With ``security`` the broker takes SASL_SSL only, and knows the users
        from its first start on ``data``.
        """
        home = find_kafka_home()
        if home is None:
            raise ConfigurationError(
                "no Apache Kafka: set TRIFID_KAFKA_HOME to the folder of kafka.sh, with Java 17 or newer"
            )
        if data is None:
            data = temporary_folder(self, "trifid-kafka-")
        data.mkdir(parents=True, exist_ok=True)
        self._data = data
        super().__init__(self._data / "output.log", start_timeout=_START_TIMEOUT, stop_timeout=_STOP_TIMEOUT)
        self._script = home / "kafka.sh"
        self._heap = heap
        self._settings = dict(settings or {})
        self._security = security
        self._port, self._controller_port = free_port(), free_port()

    @property
    def bootstrap(self) -> str:
        """``host:port`` for ``bootstrap.servers``."""
        return f"127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start the broker and wait until it answers; see ``ServerProcess.start``."""
        for attempt in range(_FORMAT_ATTEMPTS):
            try:
                return super().start()
            except ConfigurationError as error:
                # kafka.sh makes up the cluster's id, and Kafka's tool takes one in 64, with a leading "-", for an
                # option.
                if "--cluster-id" not in str(error) or attempt == _FORMAT_ATTEMPTS - 1:
                    raise
                self.log.write_bytes(b"")

    def create_topics(
        self, names: Sequence[str], *, partitions: int = 4, config: Mapping[str, str] | None = None
    ) -> None:
        """Create topics, and wait until they exist; ``config`` are settings of the topics.

        Raises DependencyUnavailableError where Kafka does not answer or refuses, as it does a topic that
        exists already.
        """
        topics = [NewTopic(name, partitions, 1, config=dict(config or {})) for name in names]
        admin = self._admin()  # kept until the answers are there: with the client, its requests would go
        for name, created in admin.create_topics(topics, request_timeout=_ADMIN_TIMEOUT).items():
            try:
                created.result()
            except KafkaException as error:
                raise DependencyUnavailableError(f"topic {name} cannot be created: {error}") from error

    def client_options(self, user: str) -> dict[str, str]:
        """librdkafka properties by which one of the users of ``security`` connects."""
        if self._security is None:
            return {"bootstrap.servers": self.bootstrap}
        return {
            "bootstrap.servers": self.bootstrap,
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": _MECHANISM,
            "sasl.username": user,
            "sasl.password": self._security.users[user],
            "ssl.ca.location": str(self._security.tls.authorities),
        }

    def tool(self, name: str, *arguments: str) -> str:
        """Run one of Kafka's own tools as the administrator, and return what it printed.

        ``name`` is one of those of ``kafka.sh``, such as ``acls``. Raises ConfigurationError where it fails.
        """
        result = subprocess.run(
            [*self.tool_command(name), *arguments], capture_output=True, text=True, timeout=_TOOL_TIMEOUT, check=False
        )
        if result.returncode:
            raise ConfigurationError(f"kafka.sh {name}: {result.stdout}{result.stderr}")
        return result.stdout

    def tool_command(self, name: str) -> list[str]:
        """The command of one of Kafka's own tools, with the server and the administrator to connect as."""
        command = [str(self._script), name, "--bootstrap-server", self.bootstrap]
        if self._security is None:
            return command
        properties = {
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": _MECHANISM,
            "sasl.jaas.config": _jaas(self._security.admin, self._security.users[self._security.admin]),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self._security.tls.authorities),
        }
        file = self._data / "admin.properties"
        _write_private(file, "".join(f"{key}={value}\n" for key, value in properties.items()))
        return [*command, "--command-config", str(file)]

    def _admin(self) -> AdminClient:
        # log_level 0: that nobody listens yet is expected while the broker starts.
        options = self.client_options(self._security.admin if self._security is not None else "")
        return AdminClient({**options, "log_level": 0})

    def _command(self) -> tuple[Sequence[str], dict[str, str]]:
        protocol = "PLAINTEXT" if self._security is None else "SASL_SSL"
        settings = {
            "listeners": f"{protocol}://{self.bootstrap},CONTROLLER://127.0.0.1:{self._controller_port}",
            "controller.quorum.bootstrap.servers": f"127.0.0.1:{self._controller_port}",
        }
        environment = {**os.environ, "HEAP": self._heap}
        if self._security is not None:
            settings |= self._security_settings(self._security)
            # kafka.sh lets the shell read this once more.
            users = (f"{_MECHANISM}=[name={name},password={word}]" for name, word in self._security.users.items())
            environment["EXTRA_FORMAT"] = " ".join(f"--add-scram {shlex.quote(user)}" for user in users)
        command = [str(self._script), "serve", str(self._data), str(self._port)]
        command += [f"{key}={value}" for key, value in (settings | self._settings).items()]
        return command, environment

    def _security_settings(self, security: KafkaSecurity) -> dict[str, str]:
        keystore = self._data / "keystore.pem"
        _write_private(keystore, security.tls.key.read_text() + security.tls.certificate.read_text())
        return {
            "advertised.listeners": f"SASL_SSL://{self.bootstrap}",
            "security.inter.broker.protocol": "SASL_SSL",
            "sasl.enabled.mechanisms": _MECHANISM,
            "sasl.mechanism.inter.broker.protocol": _MECHANISM,
            f"listener.name.sasl_ssl.{_MECHANISM.lower()}.sasl.jaas.config": _jaas(
                security.admin, security.users[security.admin]
            ),
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(keystore),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(security.tls.authorities),
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            # The controller, which is this same process, has a port of its own without users.
            "super.users": f"User:{security.admin};User:ANONYMOUS",
        }

    def _answers(self) -> bool:
        try:
            return bool(self._admin().list_topics(timeout=1).brokers)
        except KafkaException:
            return False


def _jaas(user: str, password: str) -> str:
    return f'org.apache.kafka.common.security.scram.ScramLoginModule required username="{user}" password="{password}";'


def _write_private(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text)
