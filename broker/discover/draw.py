"""A class's map: its clusters, others projected into it, and the features that separate the clusters most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from broker.discover.clusters import Clusters
from broker.discover.separating import Difference

_COLOURS: Final = ("#3a6ea5", "#b8531f", "#2d7d5f", "#8a4b9e", "#b98500")
_MOST_FEATURES: Final = 3


def draw(
    path: Path,
    title: str,
    clusters: Clusters,
    found: Sequence[Difference],
    features: Mapping[str, NDArray[np.float64]],
    others: Mapping[str, NDArray[np.float64]],
) -> None:
    """Write a figure, in the format of the file's ending; ``others`` (m, c) are principal components by type."""
    from matplotlib.figure import Figure

    shown = [d for d in found if d.feature in features][:_MOST_FEATURES]
    figure = Figure((4.6 + 3.4 * max(len(shown), 1), 4.2), layout="constrained")
    axes = figure.subplots(1, 1 + max(len(shown), 1), squeeze=False)[0]
    count = int(clusters.label.max()) + 1
    for cluster in range(count):
        own = clusters.components[clusters.label == cluster, :2]
        axes[0].scatter(*own.T, s=9, color=_COLOURS[cluster], alpha=0.7, label=f"{cluster} ({len(own)})")
    for (kind, place), marker in zip(others.items(), "x+1234^v<>", strict=False):
        axes[0].scatter(
            *place[:, :2].T, s=22, color="#1c2127", marker=marker, linewidths=0.8, label=f"{kind} ({len(place)})"
        )
    axes[0].set(xlabel="First principal component", ylabel="Second", title=f"{title}: {clusters.verdict}")
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=8, fontsize="small", frameon=False)
    for axis, one in zip(axes[1:], shown, strict=False):
        values = features[one.feature]
        good = np.isfinite(values)
        edges = np.histogram_bin_edges(np.clip(values[good], *np.quantile(values[good], [0.01, 0.99])), bins=24)
        for cluster in range(count):
            own_values = values[good & (clusters.label == cluster)]
            axis.hist(own_values, edges, density=True, histtype="step", linewidth=1.6, color=_COLOURS[cluster])
        axis.set(xlabel=one.feature, ylabel="Density", title=f"effect {one.effect:+.2f}, q {one.q_value:.1g}")
    if not shown:
        axes[1].set_axis_off()
    figure.savefig(path, dpi=120)
