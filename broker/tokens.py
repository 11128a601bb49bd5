"""API tokens: random texts of which only the SHA-256 is stored, each with the scopes it gives."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from broker.database import TOKENS
from broker.errors import ConfigurationError
from broker.scopes import SCOPES
from broker.times import mjd_now

_PREFIX: Final = "trifid_"
_BYTES: Final = 32
_LONGEST_NAME: Final = 128
_REMEMBERED: Final = 10_000


class TokenExistsError(ConfigurationError):
    """A name that another token has."""


@dataclass(frozen=True, slots=True)
class Token:
    """Whose request it is, and what it may."""

    name: str
    scopes: frozenset[str]
    created: float | None = None
    """MJD UTC, as ``expires``."""
    expires: float | None = None


LOCAL: Final = Token("local", frozenset(SCOPES))
"""Whoever asks where no tokens are required: only this machine can."""


class Tokens:
    """The tokens of one database."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._valid: set[str] = set()
        """Digests of tokens that were found valid; they may be revoked since."""

    def create(self, name: str, scopes: frozenset[str], days: float | None = None) -> str:
        """A new token, which is not stored and cannot be shown again.

        Raises TokenExistsError, and ConfigurationError for a name that cannot be or no scopes.
        """
        if (
            not name.strip()
            or len(name) > _LONGEST_NAME
            or not name.isprintable()
            or "/" in name
            or name in (".", "..")
        ):
            raise ConfigurationError(f"a token's name has 1 to {_LONGEST_NAME} printable characters, no / among them")
        if not scopes or not scopes <= set(SCOPES):
            raise ConfigurationError(f"scopes are {', '.join(SCOPES)}; give at least one")
        token, now = _PREFIX + secrets.token_urlsafe(_BYTES), mjd_now()
        row = {
            "name": name,
            "digest": _digest(token),
            "scopes": " ".join(sorted(scopes)),
            "created": now,
            "expires": None if days is None else now + days,
        }
        try:
            with self._engine.begin() as connection:
                connection.execute(sa.insert(TOKENS), [row])
        except sa.exc.IntegrityError:
            raise TokenExistsError(f"there is a token {name!r} already") from None
        return token

    def find(self, token: str) -> Token | None:
        """Whose token it is; None where it is none, was revoked or is expired."""
        digest = _digest(token)
        query = sa.select(TOKENS).where(TOKENS.c.digest == digest)
        with self._engine.connect() as connection:
            row = connection.execute(query).mappings().one_or_none()
        if row is None or (row["expires"] is not None and row["expires"] <= mjd_now()):
            self._valid.discard(digest)
            return None
        if len(self._valid) < _REMEMBERED:
            self._valid.add(digest)
        return _token(row)

    def was_valid(self, token: str) -> bool:
        """Whether it was, when it was last looked for; the database is not asked."""
        return _digest(token) in self._valid

    def all(self) -> list[Token]:
        """All tokens by name, expired ones included."""
        with self._engine.connect() as connection:
            return [_token(row) for row in connection.execute(sa.select(TOKENS).order_by(TOKENS.c.name)).mappings()]

    def revoke(self, name: str) -> bool:
        """Whether there was such a token; there is none afterwards."""
        with self._engine.begin() as connection:
            return connection.execute(sa.delete(TOKENS).where(TOKENS.c.name == name)).rowcount > 0


def _digest(token: str) -> str:
    # 256 random bits need no salt and no slow hash.
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _token(row: sa.RowMapping) -> Token:
    return Token(row["name"], frozenset(row["scopes"].split()), row["created"], row["expires"])
