"""Secrets of receivers (URLs of webhooks, tokens) in the database: encrypted where ``web.secret_key`` is set.

Fernet (https://github.com/fernet/spec): AES-128-CBC with HMAC-SHA256. What is stored begins with PREFIX; anything else
is in clear, as releases before this one, and databases without a key, have it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import sqlalchemy as sa
from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from broker.errors import ConfigurationError

PREFIX: Final = "fernet:"
_OF_DIALECT: Final = "trifid_cipher"
_NAMED: Final = 5


class Cipher:
    """Encrypts with the first of some keys, and decrypts with any."""

    def __init__(self, keys: Sequence[str]) -> None:
        """``keys``: 32 bytes in URL-safe base64 each, the first for what is stored from now on; at least one."""
        self._first, self._all = Fernet(keys[0]), MultiFernet([Fernet(key) for key in keys])

    def encrypt(self, text: str) -> str:
        """As it is stored."""
        return PREFIX + self._first.encrypt(text.encode()).decode("ascii")

    def decrypt(self, stored: str) -> str:
        """The text; raises InvalidToken where no key fits."""
        return self._all.decrypt(stored.removeprefix(PREFIX)).decode()

    def of_first(self, stored: str) -> bool:
        """Whether it was encrypted with the first key."""
        try:
            self._first.decrypt(stored.removeprefix(PREFIX))
        except InvalidToken:
            return False
        return True


class SecretText(sa.TypeDecorator[str]):
    """A text that the database has encrypted, where its engine has keys (``use_keys``)."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
        """As it is stored."""
        cipher = _cipher(dialect)
        return value if value is None or cipher is None else cipher.encrypt(value)

    def process_result_value(self, value: Any | None, dialect: sa.Dialect) -> str | None:
        """In clear; raises ConfigurationError where another process has encrypted it with an unknown key."""
        if value is None or not value.startswith(PREFIX):
            return value
        cipher = _cipher(dialect)
        try:
            if cipher is not None:
                return cipher.decrypt(value)
        except InvalidToken:
            pass
        raise ConfigurationError(
            "the secret of a list was encrypted with a key that this process does not have: give web.secret_key of all "
            "processes that use the database the same keys, and start them again"
        )


def use_keys(engine: sa.Engine, keys: Sequence[str]) -> None:
    """Have an engine's SecretText encrypted; with no keys in clear."""
    setattr(engine.dialect, _OF_DIALECT, Cipher(keys) if keys else None)


def protect(connection: sa.Connection, table: sa.Table) -> None:
    """Have all secrets of a table encrypted with the first key, those in clear and those of later keys included.

    Raises ConfigurationError, which names no secret, where one can be read with none of the keys.
    """
    cipher = _cipher(connection.dialect)
    names = [column.name for column in table.c if isinstance(column.type, SecretText)]
    stored = {name: sa.type_coerce(table.c[name], sa.Text).label(name) for name in names}
    rows = connection.execute(sa.select(table.c.id, *stored.values()).order_by(table.c.id)).mappings().all()
    unreadable = []
    for row in rows:
        changed = {}
        for name in names:
            if (text := row[name]) is None:
                continue
            encrypted = text.startswith(PREFIX)
            if cipher is None or (encrypted and cipher.of_first(text)):
                if encrypted and cipher is None:
                    unreadable.append(row["id"])
                continue
            try:
                changed[name] = cipher.decrypt(text) if encrypted else text
            except InvalidToken:
                unreadable.append(row["id"])
        if changed:
            connection.execute(sa.update(table).where(table.c.id == row["id"]).values(changed))
    if unreadable:
        ids = list(dict.fromkeys(unreadable))
        shown = ", ".join(map(str, ids[:_NAMED])) + (", ..." if len(ids) > _NAMED else "")
        why = "web.secret_key is not given" if cipher is None else "none of the keys of web.secret_key fits"
        raise ConfigurationError(
            f"secrets of {len(ids)} lists ({table.name}, id {shown}) are encrypted, and {why}: give the key with which "
            "they were, behind the new one (docs/watchlists.md), or set their webhook and token to null"
        )


def _cipher(dialect: sa.Dialect) -> Cipher | None:
    found: Cipher | None = getattr(dialect, _OF_DIALECT, None)
    return found
