"""What the sections of the settings share: types of values, and what is refused in all of them."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import NoDecode


def _split(value: object) -> object:
    """``a, b`` from the environment to a list; lists from TOML stay. Each name once."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, list | tuple):
        if not value:
            raise ValueError("names nothing")
        if any(isinstance(part, str) and not part.strip() for part in value):
            raise ValueError("has an empty name")
        return list(dict.fromkeys(value)) if all(isinstance(part, str) for part in value) else value
    return value


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Int32 = Annotated[int, Field(ge=1, le=2**31 - 1)]
"""A count or a number of bytes, as librdkafka takes it."""
ADDRESS: Final = re.compile(r"(?:[A-Za-z_]+://)?(?:\[[0-9A-Fa-f:.%]+\]|[^:/\s\[\]@?#]+)(?::\d{1,5})?")
"""``host:port``, for Kafka with a protocol before it."""


class Section(BaseModel):
    """Base of all sections."""

    # Unknown keys of the file are refused by load_settings, with a hint; unknown variables are not ours.
    model_config = ConfigDict(
        extra="ignore", frozen=True, protected_namespaces=(), hide_input_in_errors=True, allow_inf_nan=False
    )
    _may_be_empty: ClassVar[frozenset[str]] = frozenset()
    """Fields for which the empty text means something."""

    @field_validator("*", mode="before")
    @classmethod
    def _not_empty(cls, value: object, info: ValidationInfo) -> object:
        """An empty text is a variable that somebody forgot to fill, and as a group or a path it would do harm."""
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        if isinstance(text, str) and not text.strip() and info.field_name not in cls._may_be_empty:
            raise ValueError("is empty; leave it out for the default")
        return value


def refuse_unused(section: BaseModel, used: bool, why: str, *names: str) -> None:
    """Whoever gives files for TLS, or a login, means it: without it, data or passwords would travel in clear."""
    given = [name for name in names if getattr(section, name) is not None]
    if given and not used:
        raise ValueError(f"{', '.join(given)} given, but {why}")


def in_clear(secret: SecretStr | None) -> str | None:
    """What a client is to be given; never print it."""
    return None if secret is None else secret.get_secret_value()
