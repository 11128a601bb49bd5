"""Connections to Redis: one server, or a cluster where the address says so.

An address is a URL as redis-py takes it. That of a cluster has ``cluster=true`` among its options, and in
``nodes=host:port,...`` further nodes that can be asked where keys are (``RedisSettings.address`` makes it).
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.exceptions import NoScriptError, RedisClusterException
from redis.retry import Retry

from broker.errors import DependencyUnavailableError
from broker.redis_errors import redis_errors

_RETRIES: Final = 2
"""Of a command that a node of a cluster did not take, each after asking who has its slot now. Longer outages are for
the caller: the service tries the whole batch again until the cluster has a new primary, which takes seconds."""
_WAIT_MS: Final = 1000
_SCAN: Final = 1000
_STRICT: Final = "#!lua\n"
"""With this first line a cluster refuses a script that touches keys of a second slot."""
T = TypeVar("T")


class RedisConnection:
    """One Redis or a cluster; connects when it is first used. Safe for several threads."""

    def __init__(
        self,
        address: str,
        *,
        timeout: float = 5.0,
        connect_timeout: float = 5.0,
        retries: bool = True,
        replicas: int = 0,
    ) -> None:
        """Timeouts in seconds. Without ``retries`` redis-py never sends a command again that was not answered.

        ``replicas`` must have acknowledged a write made with ``execute(..., write=True)``.
        """
        self._url, self.is_cluster, self._nodes = split_address(address)
        self._options: dict[str, Any] = {"socket_timeout": timeout, "socket_connect_timeout": connect_timeout}
        self._retries, self._replicas = retries, replicas
        self._lock = threading.Lock()
        self._client: Any = None

    @property
    def client(self) -> Any:
        """redis-py's ``Redis`` or ``RedisCluster``; raises redis-py's errors where a cluster does not answer."""
        with self._lock:
            if self._client is None:
                self._client = self._connect()
            return self._client

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            close(client)

    def call(self, action: Callable[[Any], T], where: str = "") -> T:
        """What ``action`` does with the client, with Redis's errors as ours (see ``redis_errors``)."""
        with redis_errors(where):
            try:
                return action(self.client)
            except RedisClusterException:
                # None of the nodes that it knew answers: the next call asks those of the settings again.
                self.close()
                raise

    def execute(self, queue: Callable[[CommandPipeline], None], *, write: bool = False, where: str = "") -> list[Any]:
        """The answers to what ``queue`` asks for: one round trip to each node, to all at once.

        What a cluster did not answer is sent again, so that it must not matter how often it is done. With ``write`` the
        replicas asked for must have acknowledged; raises DependencyUnavailableError where they do not.
        """

        def run(client: Any) -> list[Any]:
            pipeline = CommandPipeline(client, self.is_cluster)
            queue(pipeline)
            replicas = self._replicas if write else 0
            try:
                return pipeline.execute(replicas)
            except NoScriptError:  # a node that is new, or was a replica before
                pipeline.load_scripts()
                return pipeline.execute(replicas)

        return self.call(run, where)

    def commands(self, commands: Iterable[Sequence[Any]], *, write: bool = False) -> list[Any]:
        """The answers to single commands, as ``execute``."""

        def queue(pipeline: CommandPipeline) -> None:
            for words in commands:
                pipeline.command(*words)

        commands = list(commands)
        return self.execute(queue, write=write) if commands else []

    def get(self, key: str) -> bytes | None:
        """One value."""
        value: bytes | None = self.call(lambda client: client.get(key))
        return value

    def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """The values of keys, in their order."""
        values: list[bytes | None] = self.execute(lambda pipeline: pipeline.get_many(keys))[0]
        return values

    def scan(self, pattern: str) -> Iterator[bytes]:
        """The keys of a pattern, of all nodes; one may come twice."""
        with redis_errors():
            yield from self.client.scan_iter(pattern, count=_SCAN)

    def _connect(self) -> Any:
        if not self.is_cluster:
            options = self._options if self._retries else {**self._options, "retry": Retry(NoBackoff(), 0)}
            return redis.Redis.from_url(self._url, **options)
        others = [ClusterNode(host, port) for host, port in self._nodes]  # type: ignore[no-untyped-call]
        retry = Retry(NoBackoff(), _RETRIES if self._retries else 0)
        return RedisCluster.from_url(self._url, startup_nodes=others, retry=retry, **self._options)


class CommandPipeline:
    """Commands for one round trip to each node; ``execute`` gives one answer for each call that asked for something."""

    def __init__(self, client: Any, is_cluster: bool) -> None:
        self._client, self._is_cluster = client, is_cluster
        self._commands: list[tuple[Any, ...]] = []
        self._answers: list[int | None] = []
        """Of each call how many commands it has; None for one whose answer stands for itself."""
        self._scripts: dict[str, str] = {}

    def command(self, *words: Any) -> None:
        """A command of a single key, or of keys of one hash slot."""
        self._commands.append(words)
        self._answers.append(None)

    def get_many(self, keys: Sequence[str]) -> None:
        """The values of any keys, as one answer."""
        if self._is_cluster:
            self._commands += [("GET", key) for key in keys]
            self._answers.append(len(keys))
        elif keys:
            self.command("MGET", *keys)
        else:
            self._answers.append(0)

    def script(self, script: str, keys: Sequence[str], arguments: Sequence[Any]) -> None:
        """A script; in a cluster its keys, and all others that it touches, are of one hash slot."""
        if self._is_cluster:
            # By its hash: in a cluster it is called for each slot. The server holds it to its slot.
            script = _STRICT + script
            digest = self._scripts.get(script) or hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
            self._scripts[script] = digest
            self.command("EVALSHA", digest, len(keys), *keys, *arguments)
        else:
            self.command("EVAL", script, len(keys), *keys, *arguments)

    def load_scripts(self) -> None:
        """Give the scripts to all primaries."""
        for script in self._scripts:
            self._client.script_load(script)

    def execute(self, replicas: int = 0) -> list[Any]:
        """Send all; raises the first error. ``replicas`` must have acknowledged before it returns."""
        pipeline = self._client.pipeline(transaction=False)
        waiting: dict[str, Any] = {}
        for words in self._commands:
            if self._is_cluster:
                # The node is named, as redis-py would ask a server where a script's keys are in its words. What it
                # sends again is sent to whoever has the slot then.
                node = self._client.get_node_from_key(_key(words))
                waiting[node.name] = {"target_nodes": node}
                pipeline.execute_command(*words, target_nodes=node)
            else:
                waiting[""] = {}
                pipeline.execute_command(*words)
        waits = 0
        if replicas:
            # WAIT is for what the same connection wrote, which in a pipeline is one for each node.
            for options in waiting.values():
                pipeline.execute_command("WAIT", replicas, _WAIT_MS, **options)
                waits += 1
        found = pipeline.execute()
        if waits and min(found[-waits:]) < replicas:
            raise DependencyUnavailableError(
                f"Redis: fewer than {replicas} replicas acknowledged a write within {_WAIT_MS} ms (redis.wait_replicas)"
            )
        answers: list[Any] = []
        at = 0
        for count in self._answers:
            answers.append(found[at] if count is None else found[at : at + count])
            at += 1 if count is None else count
        return answers


def close(client: Any) -> None:
    """Close all connections of a client; redis-py leaves open those by which a cluster was found."""
    client.close()
    if isinstance(client, RedisCluster):
        for node in (*client.startup_nodes, *client.nodes_manager.startup_nodes.values()):
            if node.redis_connection is not None:
                node.redis_connection.close()


def split_address(address: str) -> tuple[str, bool, list[tuple[str, int]]]:
    """The URL for redis-py, whether it is a cluster's, and further nodes; raises ValueError for malformed ones."""
    parts = urlsplit(address)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    cluster = options.pop("cluster", "") == "true"
    nodes = []
    for node in filter(None, options.pop("nodes", "").split(",")):
        host, _, port = node.rpartition(":")
        nodes.append((host.strip("[]"), int(port)))
    return urlunsplit(parts._replace(query=urlencode(options))) if cluster else address, cluster, nodes


def literally(text: str) -> str:
    """A pattern of ``SCAN`` that stands for a text."""
    return "".join(f"\\{c}" if c in "\\*?[]^" else c for c in text)


def _key(words: Sequence[Any]) -> str:
    """The first key of a command."""
    return str(words[3] if words[0] == "EVALSHA" else words[1])
