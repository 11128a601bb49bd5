"""An object's light curve from `trifid web`, and a figure of it against time and phase."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlsplit

import numpy as np

from broker.client.asking import BROKEN, ask
from broker.client.tables import optional_module
from broker.errors import ConfigurationError, DependencyUnavailableError
from broker.publish.annotation import best_of

if TYPE_CHECKING:
    import matplotlib.figure

_TIMEOUT_S: Final = 30.0
_MAX_BYTES: Final = 64 * 1024 * 1024
_MARKS: Final = {"detection": "o", "forced": "s", "limit": "v"}
_REASON: Final = 300


def fetch_object(
    survey: str, object_id: str, url: str = "http://127.0.0.1:8080", token: str | None = None
) -> dict[str, Any]:
    """All that `trifid web` at ``url`` knows of an object (docs/web.md): ``annotation``, ``lightCurve`` and so on.

    ``token`` has the scope ``read``. Raises ConfigurationError where there is no such object or the token does not do,
    DependencyUnavailableError where there is no answer.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise ConfigurationError(f"{url!r} is not the address of trifid web: give http://host:port")
    address = f"{url.rstrip('/')}/api/v1/objects/{quote(survey, safe='')}/{quote(object_id, safe='')}"
    headers = {"Accept": "application/json"} | ({} if token is None else {"Authorization": f"Bearer {token}"})
    try:
        with ask(urllib.request.Request(address, headers=headers), _TIMEOUT_S) as answer:
            found = json.loads(answer.read(_MAX_BYTES))
    except urllib.error.HTTPError as error:
        said = ""
        with error, suppress(*BROKEN):
            said = error.read(_REASON).decode("utf-8", "replace")
        kind = ConfigurationError if error.code in (401, 403, 404, 422) else DependencyUnavailableError
        raise kind(f"{address}: HTTP {error.code}: {said}") from error
    except BROKEN as error:
        raise DependencyUnavailableError(f"{address}: {error}") from error
    if not isinstance(found, dict) or "annotation" not in found:
        raise DependencyUnavailableError(f"{address}: the answer is not that of trifid web")
    return found


def plot_object(
    survey: str,
    object_id: str,
    url: str = "http://127.0.0.1:8080",
    *,
    token: str | None = None,
    period: float | None = None,
) -> matplotlib.figure.Figure:
    """A figure of an object's light curve: against time, and where a period is known against phase.

    ``period`` in days is that of the annotation where not given. Raises as ``fetch_object`` and ``plot_light_curve``.
    """
    found = fetch_object(survey, object_id, url, token)
    if not found["lightCurve"]:
        raise ConfigurationError(f"{survey}:{object_id}: no light curve is stored ({'; '.join(found['problems'])})")
    said = found["annotation"]
    best = best_of(said["classifications"])
    title = f"{object_id} ({survey}): {best['className']} {best['probability']:.2f}"
    return plot_light_curve(found["lightCurve"], said["period"] if period is None else period, title)


def plot_light_curve(
    points: Mapping[str, list[Any]], period: float | None = None, title: str = ""
) -> matplotlib.figure.Figure:
    """A figure of columns as the API has them: ``mjd``, ``mjdBarycentric``, ``band``, ``kind``, ``magnitude`` (AB),
    ``magnitudeError`` and ``total``, band by band; forced photometry has open squares, limits have open
    triangles. Where some magnitudes are of the total flux, those of differences alone, which are not the star's, are
    left out; without ``total`` all are of the total.

    Two cycles of the phase are shown, of barycentric times where they are known, from the first point on. A notebook
    shows the figure; ``figure.savefig`` keeps it. Raises ConfigurationError where Matplotlib is not installed, or
    ``period`` is no number of days above 0.
    """
    if period is not None and not (np.isfinite(period) and period > 0):
        raise ConfigurationError(f"period is {period}: give days")
    figure_module = optional_module("matplotlib.figure", "plot_light_curve")
    times = np.array(points["mjd"], np.float64)
    magnitude, error = (np.array(points[name], np.float64) for name in ("magnitude", "magnitudeError"))
    band, kind = np.array(points["band"], str), np.array(points["kind"], str)
    total = np.array(points.get("total", np.ones(len(times))), np.bool_)
    shown = np.isfinite(magnitude) & (total | (kind == "limit") | ~total.any())
    figure: matplotlib.figure.Figure = figure_module.Figure(
        figsize=(7.0, 3.6 if period is None else 6.4), layout="constrained"
    )
    axes = figure.subplots(1 if period is None else 2, squeeze=False)[:, 0]
    phase = None
    if period is not None:
        there = np.array(points.get("mjdBarycentric", points["mjd"]), np.float64)
        there = np.where(np.isfinite(there), there, times)
        phase = ((there - there.min()) / period) % 1.0 if len(there) else there
    for number, name in enumerate(sorted(set(band.tolist()))):
        for what, mark in _MARKS.items():
            of = (band == name) & (kind == what) & shown
            if not of.any():
                continue
            style: dict[str, Any] = {
                "fmt": mark, "ms": 3.5, "lw": 0.8, "color": f"C{number % 10}",
                "mfc": "none" if what != "detection" else None,
                "label": name if what == "detection" else f"{name} {what}",
            }  # fmt: skip
            yerr = None if what == "limit" else error[of]
            axes[0].errorbar(times[of], magnitude[of], yerr, **style)
            if phase is not None and what != "limit":
                twice = np.concatenate([phase[of], phase[of] + 1.0])
                axes[1].errorbar(twice, np.tile(magnitude[of], 2), np.tile(error[of], 2), **style)
    axes[0].set_xlabel("MJD (UTC)")
    for one in axes:
        one.set_ylabel("AB magnitude" if total.any() or not len(total) else "AB magnitude of the difference")
        one.invert_yaxis()
    if axes[0].get_legend_handles_labels()[1]:
        axes[0].legend(fontsize="small")
    if period is not None:
        axes[1].set_xlabel(f"phase, period {period:.7g} d")
    figure.suptitle(title)
    return figure
