"""What docs/operations.md says of backups, as it stands there, on a real Redis and a real database of `trifid web`."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from broker.embedded.redis import RedisServer
from broker.state.redis import RedisStore
from broker.tokens import Tokens
from broker.web.index import Index
from tests.documents import ROOT
from tests.integration.test_rebuild import ALERTS, states

TEXT = (ROOT / "docs/operations.md").read_text().partition("## Backup")[2].partition("\n## ")[0]


def script(start: str) -> str:
    """What a container is given as `-ec '...'`, or `python -c '...'`, after ``start``."""
    found = re.search(rf"{start}[^']*'([^']*)'", TEXT)
    assert found is not None
    return found[1]


def test_a_copy_of_redis_is_read_again(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with RedisServer(data, persistent=True) as server, closing(RedisStore(server.url)) as store:
        for alert in ALERTS[:40]:
            store.update([alert])
        with server.client() as client:
            client.save()  # as `redis-cli --rdb`, which this build of Redis has not
            (tmp_path / "redis.rdb").write_bytes((data / "dump.rdb").read_bytes())
            keys = {key: client.dump(key) for key in client.scan_iter()}
        for alert in ALERTS[40:]:
            store.update([alert])
        whole = {name: len(state.light_curve) for name, state in states(store).items()}
    told = script("redis sh -ec").replace("/data", str(data)).replace("/backup", str(tmp_path))
    done = re.sub("chown -R redis:redis", "ls", told)
    subprocess.run(["sh", "-ec", done], check=True, capture_output=True, timeout=300)
    with RedisServer(data, persistent=True) as server, closing(RedisStore(server.url)) as store:
        with server.client() as client:
            assert {key: client.dump(key) for key in client.scan_iter()} == keys
        store.update(ALERTS[40:])  # `trifid state rebuild --since` the backup
        assert {name: len(state.light_curve) for name, state in states(store).items()} == whole
        server.kill()
        server.start()  # what came later is in the append-only folder, too
        assert {name: len(state.light_curve) for name, state in states(store).items()} == whole


def test_a_copy_of_the_database_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live = tmp_path / "live"
    live.mkdir()
    with closing(Index(f"sqlite:///{live / 'web.sqlite'}")) as index:
        tokens = Tokens(index.engine)
        tokens.create("before", frozenset({"read"}), None)
        command = [sys.executable, "-c", script("exec web python -c").replace("/var/lib/trifid", str(live))]
        subprocess.run(command, check=True, timeout=300)
        (live / "backup.sqlite").rename(tmp_path / "web.sqlite")
        tokens.create("after", frozenset({"read"}), None)
    told = script("--entrypoint sh web -ec").replace("/var/lib/trifid", str(live)).replace("/backup", str(tmp_path))
    subprocess.run(["sh", "-ec", told], check=True, timeout=300)
    with closing(sqlite3.connect(live / "web.sqlite")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    with closing(Index(f"sqlite:///{live / 'web.sqlite'}")) as index:
        assert [token.name for token in Tokens(index.engine).all()] == ["before"]
