"""The objects most similar to one, or to a light curve or spectrum from elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from broker.assemble.inputs import MODALITIES
from broker.errors import ConfigurationError, TrifidError
from broker.similar.among import Among
from broker.similar.answer import Answer, SimilarObject
from broker.similar.plane import Plane
from broker.similar.sets import KINDS, NO_VECTOR_SETS, Element, Sets
from broker.similar.translate import Translator
from broker.times import mjd_now

_MORE: Final = 4
"""Times as many are asked for as are wanted, and put in order here: the quantised dot product that Redis orders by is
uncertain by 0.0004, and neighbours are closer to each other than that (docs/similar.md)."""
_AT_LEAST: Final = 40
_EFFORT: Final = 200
_FILTERED: Final = 20_000
"""Candidates that are tried against a filter before a search gives up, some 40 ms."""
_EXACT: Final = 200_000
"""Sets of up to so many objects are looked through one by one where a filter leaves fewer than wanted, 0.1 s. Longer
searches would keep workers' writes waiting."""


class UnknownToSetsError(TrifidError):
    """An object that has no such embedding in the sets."""


class Similar:
    """Asks the vector sets of one model; reads only."""

    def __init__(
        self,
        sets: Sets,
        expiry_days: float,
        translator: Callable[[], Translator] | None = None,
        version: str | None = None,
        plane: Callable[[], Plane] | None = None,
    ) -> None:
        """``expiry_days`` after it was last seen an object is none of the answer, if it is still there.

        ``version`` is that of the model (``Manifest.model_version``), for whoever makes the embeddings to compare.

        ``translator`` gives, when it is first needed, what takes embeddings from one modality to another; without it
        they are compared as they are, as for a model whose encoders share one space. ``plane`` gives the plane in
        which the model's embeddings are drawn, when it is first needed.
        """
        self._sets, self._expiry, self._make_translator = sets, expiry_days, translator
        self._translator: Translator | None = None
        self._make_plane = plane
        self._plane: Plane | None = None
        self._supported = False
        self.version: Final = version

    def check(self) -> None:
        """Raise ConfigurationError where this Redis has no vector sets."""
        if not self._supported:
            self._supported = self._sets.supported()
            if not self._supported:
                raise ConfigurationError(f"this Redis {NO_VECTOR_SETS}")

    def close(self) -> None:
        """Close the connection."""
        self._sets.connection.close()

    @property
    def model(self) -> str:
        """``Manifest.identity`` of the model."""
        return self._sets.model

    def plane(self) -> Plane:
        """The plane in which the model's embeddings are drawn; raises ConfigurationError where there is none."""
        if self._plane is None:
            if self._make_plane is None:
                raise ConfigurationError("there is no reference set to draw embeddings by")
            self._plane = self._make_plane()
        return self._plane

    def vectors_of(self, names: Sequence[tuple[str, str]], kind: str) -> list[NDArray[np.float64] | None]:
        """The embeddings (d,) of ``kind`` that are kept of objects; None of others."""
        found = stored_vectors(self._sets, names) if names else []
        return [None if kinds is None else kinds.get(kind) for kinds in found]

    def vector_of(self, name: tuple[str, str], kind: str) -> NDArray[np.float64]:
        """The embedding (d,) that is kept of an object; raises UnknownToSetsError where there is none."""
        self.check()
        element = ":".join(name)
        shard = self._sets.shard_of(element)
        raw = self._sets.connection.commands([("VEMB", self._sets.key(shard, one), element, "RAW") for one in KINDS])
        found = {one: vector for one, vector in zip(KINDS, map(_stored, raw), strict=True) if vector is not None}
        if not found:
            raise UnknownToSetsError(
                f"the object {element} is not among the {self._sets.count():,} objects whose embeddings are kept: it "
                "had no alert since similarity was turned on, is not classified, or has neither 5 points nor a spectrum"
            )
        if kind not in found:
            there = ", ".join(one.replace("_", "-") for one in found)
            raise UnknownToSetsError(f"of {element} there is no {kind.replace('_', '-')} embedding, only {there}")
        return found[kind]

    def translated(self, vector: NDArray[np.floating[Any]], of: str, to: str) -> NDArray[np.floating[Any]]:
        """An embedding (d,) of the kind ``of`` as it is looked for among those of the kind ``to``.

        The same but where both are single modalities, and different ones. Raises ConfigurationError where there is no
        reference set to translate by.
        """
        if of == to or KINDS[0] in (of, to) or self._make_translator is None:
            return vector
        if self._translator is None:
            self._translator = self._make_translator()
        (moved,) = self._translator.translate(vector[None], of, to)
        there: NDArray[np.floating[Any]] = moved
        return there

    def search(
        self,
        vector: NDArray[np.floating[Any]],
        kind: str,
        limit: int,
        among: Among | None = None,
        without: tuple[str, str] | None = None,
    ) -> Answer:
        """The ``limit`` objects whose embeddings of ``kind`` have the largest cosine with ``vector`` (d,).

        ``without`` is left out: the object itself. In a cluster all nodes are asked at the same time.
        """
        self.check()
        vector = _unit(np.asarray(vector, np.float64))
        wanted = limit + (without is not None)
        expression = None if among is None else among.filter
        count = max(_AT_LEAST, _MORE * wanted)
        replies, complete = self._ask(vector, kind, count, expression, exact=False), True
        if expression is not None and sum(map(len, replies)) < wanted:
            complete = self._sets.count() <= _EXACT * self._sets.shards
            if complete:
                replies = self._ask(vector, kind, count, expression, exact=True)
        today = mjd_now()
        found: list[tuple[str, Element, float]] = []
        asked: list[tuple[Any, ...]] = []
        for shard, reply in enumerate(replies):
            for element, score, attributes in reply:
                try:
                    known = Element.from_json(attributes)
                except (ValueError, KeyError, TypeError):  # of another release; the next alert writes it anew
                    continue
                if element != ":".join(without or ()) and known.day + 1 >= today - self._expiry:
                    found.append((element, known, 2.0 * score - 1.0))
                    asked.append(("VEMB", self._sets.key(shard, kind), element, "RAW"))
        # One that was removed meanwhile has no vector any more.
        exact = [
            (element, known, quantised if kept is None else float(kept @ vector))
            for (element, known, quantised), kept in zip(
                found, map(_stored, self._sets.connection.commands(asked)), strict=True
            )
        ]
        exact.sort(key=lambda one: (-one[2], one[0]))
        return Answer(tuple(_match(*one) for one in exact[:limit]), complete)

    def _ask(
        self, vector: NDArray[np.float64], kind: str, count: int, expression: str | None, *, exact: bool
    ) -> list[list[tuple[str, float, bytes]]]:
        """Of each shard: elements, scores as Redis gives them, attributes."""
        options: list[Any] = ["WITHSCORES", "WITHATTRIBS", "COUNT", count]
        options += ["TRUTH"] if exact else ["EF", max(_EFFORT, count)]
        if expression is not None:
            options += ["FILTER", expression, "FILTER-EF", _FILTERED]
        blob = vector.astype("<f4").tobytes()
        keys = [self._sets.key(shard, kind) for shard in range(self._sets.shards)]
        replies = self._sets.connection.commands([("VSIM", key, "FP32", blob, *options) for key in keys])
        return [list(_scored(reply)) for reply in replies]


def stored_vectors(sets: Sets, names: Sequence[tuple[str, str]]) -> list[dict[str, NDArray[np.float64]] | None]:
    """The embeddings (d,) that are kept of objects, by kind; None of an object that is not among those.

    Of an object of one modality, that modality's is the fused one.
    """
    keys = [(element, sets.shard_of(element)) for element in map(":".join, names)]
    raw = sets.connection.commands(
        [("VEMB", sets.key(shard, kind), element, "RAW") for element, shard in keys for kind in KINDS]
    )
    vectors = [_stored(reply) for reply in raw]
    found: list[dict[str, NDArray[np.float64]] | None] = []
    for start in range(0, len(vectors), len(KINDS)):
        kinds = {
            kind: vector
            for kind, vector in zip(KINDS, vectors[start : start + len(KINDS)], strict=True)
            if vector is not None
        }
        found.append(kinds or None)
    return found


def _scored(reply: Any) -> Iterable[tuple[str, float, bytes]]:
    """Releases of redis-py differ: a dict of pairs, or a flat list."""
    if isinstance(reply, dict):
        rows: Iterable[Sequence[Any]] = ((name, *pair) for name, pair in reply.items())
    else:
        rows = zip(reply[::3], reply[1::3], reply[2::3], strict=True)
    return ((name.decode(), float(score), attributes) for name, score, attributes in rows)


def _stored(reply: Any) -> NDArray[np.float64] | None:
    """The vector (d,) of VEMB ... RAW, at length 1; None where there is none.

    Redis compares the steps as they are. At its true length the error that the steps have along the vector is gone, and
    that is the error that counts among its neighbours.
    """
    if not reply:
        return None
    # Q8 is the only form that workers write.
    return _unit(np.frombuffer(reply[1], np.int8).astype(np.float64))


def _unit(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    length = float(np.linalg.norm(vector))
    return vector / length if length > 0 else vector


def _match(element: str, known: Element, similarity: float) -> SimilarObject:
    survey, _, object_id = element.partition(":")
    modalities = tuple(name for bit, name in enumerate(MODALITIES) if known.modalities >> bit & 1)
    return SimilarObject(
        survey, object_id, round(similarity, 6), known.class_name, known.probability, known.ra, known.dec,
        known.magnitude, known.detections, modalities,
    )  # fmt: skip
