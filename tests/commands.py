"""Commands of `trifid` as tests run them, in this process."""

from __future__ import annotations

from click.testing import CliRunner, Result

from broker.cli import main
from broker.embedded.redis import RedisServer


def classify(*arguments: object) -> tuple[int, list[str], str]:
    """Exit code, lines and what is said on stderr of `trifid classify`."""
    result = CliRunner().invoke(main, ["classify", *map(str, arguments)])
    return result.exit_code, result.stdout.splitlines(), result.stderr


def catalog(server: RedisServer, *arguments: object) -> Result:
    """`trifid catalog` with a Redis."""
    return CliRunner().invoke(
        main, ["catalog", *map(str, arguments)], env={"TRIFID_REDIS__URL": server.url, "COLUMNS": "200"}
    )
