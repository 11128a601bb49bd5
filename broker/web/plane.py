"""The map of embeddings: reference stars and live objects in a plane, drawn here; a script leads from a point on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode

import numpy as np
from fastapi import APIRouter, Depends, HTTPException, Request, Response
from numpy.typing import NDArray

from broker.errors import ConfigurationError, DependencyUnavailableError
from broker.similar.plane import Plane
from broker.taxonomy import CLASS_NAMES, OUTPUT_NAMES
from broker.web.alike import available
from broker.web.pages import page
from broker.web.search import Query, search
from broker.web.services import Parts, requires

router = APIRouter(include_in_schema=False)

WIDTH, HEIGHT = 1000, 700
"""Of the drawing, its own units."""
MOST: Final = 400
"""Live objects, the latest ones."""
LISTED: Final = 100
_KNOWN: Final = 80
"""Reference stars drawn of a class."""
_ZOOMS: Final = (1, 2, 4, 8, 16)
_EDGE: Final = 0.5
"""Percent of the reference stars that are beyond the drawing at each side."""


@dataclass(frozen=True, slots=True)
class View:
    """What part of the plane is drawn."""

    x: float
    """Of its middle, in units of the plane from that of the whole; to the right, and ``y`` up."""
    y: float
    zoom: int
    class_name: str

    def address(self, *, x: float = 0.0, y: float = 0.0, zoom: int | None = None) -> str:
        """Of a view that is moved by so many widths and heights of what is seen, or zoomed."""
        moved = {
            "x": f"{self.x + x / self.zoom:.4g}", "y": f"{self.y + y / self.zoom:.4g}",
            "zoom": self.zoom if zoom is None else zoom,
        }  # fmt: skip
        return "/map?" + urlencode(moved | ({"class": self.class_name} if self.class_name else {}))


@router.get("/map", dependencies=[Depends(requires("read", page=True))])
def show(request: Request, parts: Parts) -> Response:
    """The plane, with the latest objects of a class, or of all; ``x``, ``y`` and ``zoom`` say which part."""
    view = _view(request)
    if view is None:
        return page(request, "map.html", 422, problem="x, y and zoom have to be numbers, class one of the classes.")
    try:
        similar = available(parts)
        plane = similar.plane()
        query = Query(class_name=view.class_name or None)
        found = search(parts.index, query, MOST).objects
        kept = similar.vectors_of([(one["survey"], one["objectId"]) for one in found], "light_curve")
    except HTTPException as error:
        return page(request, "map.html", error.status_code, problem=str(error.detail))
    except (ConfigurationError, DependencyUnavailableError) as error:
        return page(request, "map.html", 503, problem=str(error))
    there = [row for row, vector in enumerate(kept) if vector is not None]
    vectors = [vector for vector in kept if vector is not None]
    places = plane.of_vectors(np.stack(vectors)) if vectors else np.empty((0, 2))
    drawn = Drawn(plane, view)
    live = [
        {**found[row], "x": x, "y": y, "colour": _colour(found[row]["class"])}
        for row, (x, y, inside) in zip(there, drawn.points(places), strict=True)
        if inside
    ]
    return page(
        request, "map.html", problem=None, view=view, zooms=_zooms(view), known=drawn.known(), names=drawn.names(),
        live=live, listed=live[:LISTED], without=len(found) - len(there), model=similar.model,
        classes=OUTPUT_NAMES[:-1], width=WIDTH, height=HEIGHT,
    )  # fmt: skip


class Drawn:
    """A plane as a view shows it."""

    def __init__(self, plane: Plane, view: View) -> None:
        low, high = np.percentile(plane.known, [_EDGE, 100.0 - _EDGE], axis=0)
        span = np.maximum(high - low, 1e-9)
        self._plane = plane
        self._middle = (low + high) / 2.0 + np.array([view.x, view.y]) * span
        self._scale = np.array([WIDTH, -HEIGHT]) * view.zoom / (1.1 * span)

    def points(self, places: NDArray[np.float64]) -> list[tuple[float, float, bool]]:
        """Where places (n, 2) are drawn, and whether that is inside."""
        at = (places - self._middle) * self._scale + np.array([WIDTH, HEIGHT]) / 2.0
        inside = np.all((at >= 0.0) & (at <= np.array([WIDTH, HEIGHT])), axis=1)
        return [(round(x, 1), round(y, 1), there) for (x, y), there in zip(at.tolist(), inside.tolist(), strict=True)]

    def known(self) -> list[dict[str, Any]]:
        """Reference stars that are inside, as many of each class at most."""
        rows = [np.flatnonzero(self._plane.class_names == name) for name in CLASS_NAMES]
        # Of all lengths, which the set has one after the other.
        chosen = np.concatenate([own[:: max(1, math.ceil(len(own) / _KNOWN))] for own in rows])
        return [
            {"x": x, "y": y, "colour": _colour(str(name))}
            for (x, y, inside), name in zip(
                self.points(self._plane.known[chosen]), self._plane.class_names[chosen].tolist(), strict=True
            )
            if inside
        ]

    def names(self) -> list[dict[str, Any]]:
        """Where the name of each class is written: at the median of its stars, if that is inside."""
        own = [name for name in CLASS_NAMES if np.any(self._plane.class_names == name)]
        medians = [np.median(self._plane.known[self._plane.class_names == name], axis=0) for name in own]
        return [
            {"x": x, "y": y, "name": name}
            for (x, y, inside), name in zip(self.points(np.stack(medians)), own, strict=True)
            if inside
        ]


def _view(request: Request) -> View | None:
    """None where what is asked for makes no sense."""
    given = request.query_params
    try:
        x, y, zoom = float(given.get("x", 0)), float(given.get("y", 0)), int(given.get("zoom", 1))
    except ValueError:
        return None
    name = given.get("class", "")
    if not (abs(x) <= 10 and abs(y) <= 10) or zoom not in _ZOOMS or name not in ("", *OUTPUT_NAMES):
        return None
    return View(x, y, zoom, name)


def _zooms(view: View) -> tuple[int | None, int | None]:
    """The next smaller and larger one."""
    at = _ZOOMS.index(view.zoom)
    wider: Sequence[int] = _ZOOMS[:at]
    return (wider[-1] if wider else None), (_ZOOMS[at + 1] if at + 1 < len(_ZOOMS) else None)


def _colour(class_name: str) -> int:
    """The number of a class's colour; one for all that are none of the ten."""
    return CLASS_NAMES.index(class_name) if class_name in CLASS_NAMES else len(CLASS_NAMES)
