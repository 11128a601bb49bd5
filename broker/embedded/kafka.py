"""Apache Kafka on one node (KRaft), from a folder with its jars and ``kafka.sh``, on Java 17 or newer."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from broker.embedded.ports import free_port
from broker.embedded.process import ServerProcess, temporary_folder
from broker.errors import ConfigurationError, DependencyUnavailableError

_CHECKOUT: Final = Path(__file__).resolve().parents[2]
_START_TIMEOUT: Final = 120.0
_STOP_TIMEOUT: Final = 30.0
_ADMIN_TIMEOUT: Final = 10.0
_FORMAT_ATTEMPTS: Final = 4


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
        self, data: Path | None = None, *, heap: str = "256m", settings: Mapping[str, str] | None = None
    ) -> None:
        """Prepare a broker; raises ConfigurationError where there is no Kafka or no Java.

        ``data`` keeps topics beyond the broker's life, else they go with this object; ``settings`` are the
        broker's own (``server.properties``).
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

    def _admin(self) -> AdminClient:
        # log_level 0: that nobody listens yet is expected while the broker starts.
        return AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})

    def _command(self) -> tuple[Sequence[str], dict[str, str]]:
        listeners = f"PLAINTEXT://{self.bootstrap},CONTROLLER://127.0.0.1:{self._controller_port}"
        settings = {
            "listeners": listeners,
            "controller.quorum.bootstrap.servers": f"127.0.0.1:{self._controller_port}",
            **self._settings,
        }
        command = [str(self._script), "serve", str(self._data), str(self._port)]
        command += [f"{key}={value}" for key, value in settings.items()]
        return command, {**os.environ, "HEAP": self._heap}

    def _answers(self) -> bool:
        try:
            return bool(self._admin().list_topics(timeout=1).brokers)
        except KafkaException:
            return False
