"""The keys of state. Those of what is in one coarse cell of the sky, its home, have the number of the cell as hash tag.

``<prefix>:{<home>}:<survey>:<object id>:lc`` and so on (docs/state.md). A Redis Cluster looks at what is in the braces
only, so that all of one home is in one slot.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Final

from broker.redis_client import RedisConnection

ObjectName = tuple[str, str]
"""Survey and object id."""
NO_HOME: Final = ""
"""Of keys as releases before 29 November 2026 wrote them, without a tag: only a single Redis has them."""
HOMES: Final = b"homes"
"""What the layout key says where no key is of before."""
_BODIES: Final = 16_384
_NO_SURVEYS: Final = ("spectrum", "where", "spectrum-of", "sky", "cat", "catalog")


def base(prefix: str, home: str) -> str:
    """What the keys of a home begin with."""
    return f"{prefix}:{{{home}}}" if home else prefix


def object_key(prefix: str, home: str, name: ObjectName, kind: str) -> str:
    """The key of an object's ``lc`` (light curve) or ``ps`` (period search)."""
    return f"{base(prefix, home)}:{name[0]}:{name[1]}:{kind}"


def sky_key(prefix: str, home: str, kind: str, cell: int | str) -> str:
    """The hash of the places of ``objects`` or ``spectra`` in a fine cell, as far as a home has them."""
    return f"{base(prefix, home)}:sky:{kind}:{cell}"


def body_home(name: ObjectName) -> str:
    """The home of a body of the solar system, which is anywhere on the sky: its name tells."""
    return f"b{zlib.crc32(':'.join(name).encode()) % _BODIES}"


def split_object_key(prefix: str, key: str) -> tuple[str, ObjectName]:
    """Home and name of an object from the key of its light curve."""
    text = key[len(prefix) + 1 :].removesuffix(":lc")
    home = NO_HOME
    if text.startswith("{"):
        tag, _, text = text.partition("}:")
        home = tag[1:]
    survey, _, object_id = text.partition(":")
    return home, (survey, object_id)


def layout_key(prefix: str) -> str:
    """Says which keys there are: HOMES where none is of before."""
    return f"{prefix}:layout"


def named_spectra_key(prefix: str) -> str:
    """There where a spectrum was ever stored by an object's name: a cluster is asked for such ones only then."""
    return f"{prefix}:spectra-by-name"


def untagged_keys(connection: RedisConnection, prefix: str) -> Iterator[str]:
    """Keys of objects, and of cells that have spectra, as releases wrote them that kept no homes."""
    for key in connection.scan(f"{prefix}:[^{{]*:lc"):
        text = key.decode()
        if text.split(":", 2)[1] not in _NO_SURVEYS:
            yield text
    for key in connection.scan(f"{prefix}:sky:spectra:*"):
        yield key.decode()
