"""Secrets of receivers in the database: in clear, encrypted, with other keys, in SQLite and PostgreSQL."""

from __future__ import annotations

from contextlib import closing

import pytest
import sqlalchemy as sa
from cryptography.fernet import Fernet
from pydantic import ValidationError

from broker.config import Settings
from broker.errors import ConfigurationError
from broker.watch.content import Content
from broker.watch.lists import Lists, Terms, load
from broker.web.index import Index

OLD, NEW = Fernet.generate_key().decode(), Fernet.generate_key().decode()
URL = "https://hooks.slack.com/services/T0/B0/secret-path"
SERVICE = "https://fritz.science"


def keep(database: str, *keys: str) -> None:
    """Two lists: a webhook; a service with a token."""
    settings = Settings.model_validate({"web": {"database": database}})
    with closing(Index(database, keys)) as index:
        lists = Lists(index.engine, settings)
        lists.create("local", "plain", Terms(webhook=URL), Content(names=["a"]))
        service = Terms(webhook=SERVICE, format="skyportal", options={"group_ids": [1]}, token="its-token")
        lists.create("local", "service", service, Content(names=["b"]))
        lists.create("local", "nobody", Terms(), Content(names=["c"]))


def in_clear(database: str, *keys: str) -> dict[str, tuple[str | None, str | None]]:
    """What a process with these keys has of each list, webhook and token."""
    with closing(Index(database, keys)) as index:
        rows = [row for _, row in load(index.engine, tokens_required=False)]
        assert len(rows) == 3
        return {row["name"]: (row["webhook"], row["token"]) for row in rows}


def stored(database: str) -> str:
    """All that the database has of them, as it is there."""
    engine = sa.create_engine(database)
    with engine.connect() as connection:
        found = connection.execute(sa.text("SELECT webhook, token FROM trifid_watches ORDER BY id")).all()
    engine.dispose()
    return str(found)


EXPECTED = {"plain": (URL, None), "service": (SERVICE, "its-token"), "nobody": (None, None)}


def test_without_a_key_secrets_are_in_clear_and_with_one_they_are_not(database: str) -> None:
    keep(database)
    assert "secret-path" in stored(database)
    assert in_clear(database) == EXPECTED
    assert in_clear(database, OLD) == EXPECTED  # which encrypts them
    for secret in ("secret-path", "its-token", "slack", "fritz"):
        assert secret not in stored(database)
    before = stored(database)
    assert in_clear(database, OLD) == EXPECTED
    assert stored(database) == before  # nothing to do
    with pytest.raises(ConfigurationError, match=r"secrets of 2 lists .*id 1, 2\) .*web.secret_key is not given"):
        Index(database)


def test_keys_are_rotated(database: str) -> None:
    keep(database, OLD)
    assert "secret-path" not in stored(database)
    with pytest.raises(ConfigurationError, match=r"secrets of 2 lists .* none of the keys") as refused:
        Index(database, [NEW])
    assert OLD not in str(refused.value)
    assert NEW not in str(refused.value)
    assert in_clear(database, OLD, NEW) == EXPECTED
    assert in_clear(database, OLD) == EXPECTED
    assert in_clear(database, NEW, OLD) == EXPECTED  # which encrypts them with NEW
    assert in_clear(database, NEW) == EXPECTED
    with pytest.raises(ConfigurationError, match="none of the keys"):
        Index(database, [OLD])


def test_a_refused_start_changes_nothing(database: str) -> None:
    keep(database, OLD)
    engine = sa.create_engine(database)
    with engine.begin() as connection:
        connection.execute(sa.text(f"UPDATE trifid_watches SET webhook = '{URL}', token = NULL WHERE name = 'plain'"))
    engine.dispose()
    before = stored(database)
    with pytest.raises(ConfigurationError, match=r"secrets of 1 lists .*id 2\)"):
        Index(database, [NEW])
    assert stored(database) == before


def test_a_process_that_is_running_when_another_one_encrypts_says_so(database: str) -> None:
    keep(database)
    with closing(Index(database)) as index:
        assert in_clear(database, OLD) == EXPECTED
        with pytest.raises(ConfigurationError, match="a key that this process does not have"):
            load(index.engine, tokens_required=False)


@pytest.mark.parametrize(
    "key",
    ["", " ", "short", "x" * 44, OLD.replace("=", "+"), f"{OLD} x"],
    ids=["empty", "blank", "short", "no base64 of 32 bytes", "no base64", "a second that is none"],
)
def test_what_is_no_key_is_refused(key: str) -> None:
    with pytest.raises(ValidationError, match=r"no key of 32 bytes|is empty") as refused:
        Settings.model_validate({"web": {"secret_key": key}})
    assert OLD not in str(refused.value)


def test_keys_of_the_settings() -> None:
    assert Settings.model_validate({"web": {"secret_key": f"{NEW} {OLD}"}}).web.secret_keys == (NEW, OLD)
    assert Settings().web.secret_keys == ()
