"""What an operator can do with the state of one object: look at it, forget it, take out impossible points."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from broker.errors import TrifidError
from broker.records import Alert, KeptSearch, LightCurve
from broker.redis_client import CommandPipeline, RedisConnection, literally
from broker.similar.sets import remove_from_all
from broker.state.encoding import STAMP_BYTES, StateError, decode_object, decode_search, encode_object
from broker.state.keys import NO_HOME, ObjectName, base, object_key, sky_key, split_object_key
from broker.state.objects import is_moving
from broker.state.places import StoredPlace, own_cells
from broker.state.scripts import WRITE
from broker.surveys.columns import ANY_TIME, PointFlaw, TimeRange, implausible

_TRIES: Final = 20
_REQUESTED: Final = "requested"
"""Reason of points that the operator names."""


class UnknownObjectError(TrifidError):
    """Nothing is stored of an object."""


@dataclass(frozen=True, slots=True)
class ObjectContents:
    """All that is stored of one object."""

    survey: str
    object_id: str
    version: int | None
    """Of the layout; None where no light curve is stored."""
    size: int
    """Bytes of the light curve's value."""
    light_curve: LightCurve
    latest: Alert | None
    """The latest alert, without its light curve; None where there is none or it cannot be read."""
    problem: str | None
    """Why the value cannot be read."""
    place: StoredPlace | None
    """Where other surveys' alerts and spectra find it."""
    has_spectrum: bool
    """Whether a spectrum is stored under its name."""
    kept_search: KeptSearch | None
    """The last period search; None where none is kept, or none that can be read."""
    set_aside: bool
    """Whether a value that could not be read is kept beside it."""


@dataclass(frozen=True, slots=True)
class Repair:
    """What became of one object."""

    name: ObjectName
    points: int
    """Before."""
    removed: Mapping[str, int] = field(default_factory=dict)
    """Points that were removed, by reason (``LeftOut`` in lower case, or ``requested``)."""
    latest_was: float | None = None
    """The time of the latest alert, MJD, where that could not be and was replaced."""
    first: float = float("nan")
    last: float = float("nan")
    """Of the points that are left, MJD."""

    @property
    def left(self) -> int:
        """Points that are left; of none the object is forgotten."""
        return self.points - sum(self.removed.values())

    @property
    def changes(self) -> bool:
        """Whether there was anything to repair."""
        return bool(self.removed) or self.latest_was is not None


@dataclass(frozen=True, slots=True)
class Selection:
    """Points to be removed beyond the impossible ones: all that meet each condition given."""

    between: tuple[float, float] | None = None
    """First and last MJD."""
    kind: int | None = None
    """PhotometryKind."""

    def __call__(self, curve: LightCurve) -> NDArray[np.bool_]:
        """Which points (n,) of a light curve are meant; none where no condition is given."""
        meant = np.full(len(curve), self.between is not None or self.kind is not None)
        if self.between is not None:
            meant &= (curve.mjd >= self.between[0]) & (curve.mjd <= self.between[1])
        if self.kind is not None:
            meant &= curve.kind == self.kind
        return meant


class StateAdmin:
    """Single objects in Redis, safe while the service runs."""

    def __init__(
        self, connection: RedisConnection, times: Mapping[str, TimeRange], expiry: int, *, prefix: str = "trifid"
    ) -> None:
        """``times`` are when each survey, by name, can have observed; ``expiry`` seconds."""
        self._redis, self._times, self._expiry, self._prefix = connection, times, expiry, prefix
        self._homes: dict[ObjectName, str] = {}

    def close(self) -> None:
        """Close the connection."""
        self._redis.close()

    def find(self, text: str) -> list[ObjectName]:
        """The objects that ``survey:id``, or an id alone, stands for, of which something is stored.

        All keys are looked through, as nothing but an object's position tells where it is.
        """
        survey, colon, object_id = text.partition(":")
        names = [(known, text) for known in self._times]
        if colon and survey in self._times:
            names.insert(0, (survey, object_id))
        self._look_for(names)
        return [name for name in names if any(self._values(name))]

    def every(self) -> Iterator[ObjectName]:
        """All objects of which a light curve is stored."""
        for key in self._redis.scan(f"{self._prefix}:*:lc"):
            home, name = split_object_key(self._prefix, key.decode())
            if name not in self._homes:
                self._homes[name] = home
                yield name

    def read(self, name: ObjectName) -> ObjectContents:
        """What is stored of an object; raises UnknownObjectError where nothing is."""
        value, spectrum, damaged, search = self._values(name)
        if not any((value, spectrum, damaged)):
            raise UnknownObjectError(f"nothing is stored of {':'.join(name)}")
        curve, latest, problem = LightCurve.empty(), None, None
        if value is not None:
            try:
                curve, latest = decode_object(value, *name)
            except StateError as error:
                problem = str(error)
        return ObjectContents(
            *name,
            version=None if not value else value[0],
            size=len(value or b""),
            light_curve=curve,
            latest=latest,
            problem=problem,
            place=None if latest is None else self._place(name, latest),
            has_spectrum=spectrum is not None,
            kept_search=_search(search),
            set_aside=damaged is not None,
        )

    def forget(self, name: ObjectName) -> list[str]:
        """Delete all that is stored under an object's name, and its place; returns the keys that there were.

        Spectra that are stored by position stay. Raises UnknownObjectError where nothing is stored.
        """
        text = ":".join(name)
        home = self._home(name)
        keys = [
            f"{object_key(self._prefix, home, name, kind)}{end}" for end in ("", ":damaged") for kind in ("lc", "ps")
        ]
        elsewhere = [
            f"{self._prefix}:{text}:sp",
            f"{self._prefix}:{text}:sp:damaged",
            f"{self._prefix}:spectrum-of:{text}",
        ]

        def delete(pipeline: Any) -> list[str]:
            # The object is watched from here on: where a worker writes it meanwhile, this is done again.
            values = {key: pipeline.get(key) for key in keys}
            found = [key for key, value in values.items() if value is not None]
            cell = _cell(values[keys[0]], name)
            pipeline.multi()
            if found:
                pipeline.delete(*found)
            if cell is not None:
                pipeline.hdel(sky_key(self._prefix, home, "objects", cell), text)
            return found

        found: list[str] = []
        if home or not self._redis.is_cluster:  # keys without a home are of a single Redis, and in a cluster anywhere
            found = self._redis.call(lambda client: client.transaction(delete, keys[0], value_from_callable=True))
        there = [
            key for key, value in zip(elsewhere, self._redis.get_many(elsewhere), strict=True) if value is not None
        ]
        self._redis.commands(("DEL", key) for key in there)
        remove_from_all(self._redis, self._prefix, name)
        if not found and not there:
            raise UnknownObjectError(f"nothing is stored of {text}")
        return [*found, *there]

    def repair(
        self, name: ObjectName, latest: float, selected: Callable[[LightCurve], NDArray[np.bool_]], *, dry: bool = False
    ) -> Repair:
        """Remove impossible points, those later than MJD ``latest`` among them, and those ``selected``.

        Where the latest alert's time is impossible, that of the last point left takes its place, so that the next alert
        is the latest again. An object without any point left is forgotten. With ``dry`` nothing is changed. Raises
        StateError where the value cannot be read, UnknownObjectError where there is none.
        """
        for _ in range(_TRIES):
            value = self._redis.get(object_key(self._prefix, self._home(name), name, "lc"))
            if value is None:
                raise UnknownObjectError(f"no light curve is stored of {':'.join(name)}")
            curve, alert = decode_object(value, *name)
            repair, kept, repaired = self._repaired(name, curve, alert, latest, selected)
            if dry or not repair.changes:
                return repair
            if not repair.left:
                self.forget(name)
                return repair
            if self._write(name, kept, repaired, alert, value):
                return repair
        raise StateError(f"{':'.join(name)} changes all the time: stop its stream, or try again")

    def _repaired(
        self,
        name: ObjectName,
        curve: LightCurve,
        alert: Alert,
        latest: float,
        selected: Callable[[LightCurve], NDArray[np.bool_]],
    ) -> tuple[Repair, LightCurve, Alert]:
        times = self._times.get(name[0], ANY_TIME)
        why = implausible(curve, times, latest)
        requested = selected(curve) & (why == PointFlaw.NONE)
        removed = Counter(PointFlaw(code).name.lower() for code in why[why != PointFlaw.NONE].tolist())
        if requested.any():
            removed[_REQUESTED] = int(requested.sum())
        keep = np.flatnonzero((why == PointFlaw.NONE) & ~requested)
        kept = LightCurve(
            curve.mjd[keep], curve.flux[keep], curve.flux_error[keep],
            curve.reference_flux[keep], curve.band[keep], curve.kind[keep],
        )  # fmt: skip
        can_be = times.first <= alert.mjd <= times.bound(np.array([latest]))[0]
        first, last = (float(kept.mjd[0]), float(kept.mjd[-1])) if len(kept) else (float("nan"), float("nan"))
        repair = Repair(name, len(curve), dict(removed), None if can_be else alert.mjd, first, last)
        return repair, kept, alert if can_be or not len(kept) else replace(alert, mjd=last)

    def _write(self, name: ObjectName, curve: LightCurve, latest: Alert, before: Alert, value: bytes) -> bool:
        """Whether the object was written; not so where a worker has written it meanwhile."""
        place = self._place(name, before) or StoredPlace(latest.ra, latest.dec, latest.mjd)
        place = replace(place, mjd=latest.mjd)
        home = self._home(name)
        arguments: Sequence[str | int | bytes] = [
            self._expiry, 1, ":".join(name), encode_object(curve, latest, value), value[:STAMP_BYTES],
            b"" if is_moving(latest, curve) else place.pack(), own_cells([latest])[0], "",
        ]  # fmt: skip

        def write(pipeline: CommandPipeline) -> None:
            pipeline.script(WRITE, [base(self._prefix, home)], arguments)

        if self._redis.execute(write, write=True)[0]:
            return False
        # Workers would see that it is of other points; that none is kept is plainer to whoever looks.
        self._redis.commands([("DEL", object_key(self._prefix, home, name, "ps"))])
        # Its embeddings are of what it was; the next alert brings the new ones.
        remove_from_all(self._redis, self._prefix, name)
        return True

    def _home(self, name: ObjectName) -> str:
        """Where an object is; looked for where neither ``find`` nor ``every`` saw it."""
        if name not in self._homes:
            self._look_for([name])
        return self._homes[name]

    def _look_for(self, names: Sequence[ObjectName]) -> None:
        for object_id in {name[1] for name in names}:
            for key in self._redis.scan(f"{self._prefix}:*:{literally(object_id)}:lc*"):
                home, name = split_object_key(self._prefix, key.decode().removesuffix(":damaged"))
                self._homes[name] = max(home, self._homes.get(name, NO_HOME))
        for name in names:
            self._homes.setdefault(name, NO_HOME)

    def _values(self, name: ObjectName) -> list[bytes | None]:
        """Light curve, spectrum, the light curve that was set aside, period search."""
        home = self._home(name)
        curve, search = (object_key(self._prefix, home, name, kind) for kind in ("lc", "ps"))
        return self._redis.get_many([curve, f"{self._prefix}:{':'.join(name)}:sp", f"{curve}:damaged", search])

    def _place(self, name: ObjectName, latest: Alert) -> StoredPlace | None:
        key = sky_key(self._prefix, self._home(name), "objects", own_cells([latest])[0])
        found = self._redis.call(lambda client: client.hget(key, ":".join(name)))
        return StoredPlace.unpack(found) if isinstance(found, bytes) else None


def _search(value: bytes | None) -> KeptSearch | None:
    if value is None:
        return None
    try:
        return decode_search(value)
    except StateError:
        return None  # workers make it anew


def _cell(value: bytes | None, name: ObjectName) -> int | None:
    if value is None:
        return None
    try:
        return own_cells([decode_object(value, *name)[1]])[0]
    except StateError:
        return None  # its entry is passed over by readers, and expires
