"""``trifid discover``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from broker.cli import options, text
from broker.taxonomy import CLASS_NAMES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from broker.discover.clusters import Clusters
    from broker.discover.separating import Difference


@click.command()
@click.argument("table", type=click.Path(path_type=Path))
@click.option(
    "--class",
    "class_name",
    type=click.Choice(CLASS_NAMES, case_sensitive=False),
    required=True,
    help="Whose stars are divided into groups.",
)
@options.files("--lightcurves", "tables", "Light curves, as `trifid classify` reads them.", required=True)
@options.files(
    "--values", "value_files", "Table of positions and numbers, such as colours, which are compared between clusters."
)
@click.option(
    "--difference",
    "subtracted",
    multiple=True,
    metavar="A-B",
    help="Of two columns of --values, such as a colour. May be given several times.",
)
@options.files("--spectra", "spectra_files", "Spectra of the stars, as `trifid audit` takes them.")
@click.option(
    "--project",
    "projected",
    multiple=True,
    metavar="TYPE",
    help="Also draw stars whose type in TABLE begins so, such as RRD or CW, into the map. May be given several times.",
)
@options.match_radius(5.0)
@options.table_columns
@click.option(
    "--figure", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Map: .png, .svg, .pdf."
)
@click.option("--top", type=click.IntRange(min=1), default=15, show_default=True, help="Features to print.")
@options.json_lines
@options.config
def discover(
    table: Path,
    class_name: str,
    tables: tuple[Path, ...],
    value_files: tuple[Path, ...],
    subtracted: tuple[str, ...],
    spectra_files: tuple[Path, ...],
    projected: tuple[str, ...],
    radius: float,
    columns: tuple[str, ...],
    figure: Path | None,
    top: int,
    as_json: bool,
    config: Path | None,
) -> None:
    """Tell whether the stars of a class fall into groups, and what separates these.

    The stars are those of the light curves that TABLE gives the class to. Their embeddings are clustered; what is found
    is tested against chance before it is called anything (docs/discovery.md). Needs the extra train:
    pip install 'trifid[train]'.
    """  # fmt: skip
    from importlib.util import find_spec
    from itertools import chain

    from broker.errors import ConfigurationError

    for package in ("sklearn", "scipy", "matplotlib"):
        if find_spec(package) is None:
            raise ConfigurationError(f"{package} is not installed: pip install 'trifid[train]'")
    import numpy as np

    from broker.audit.claims import Claims
    from broker.config import load_settings
    from broker.discover.clusters import find_clusters
    from broker.discover.draw import draw
    from broker.discover.sample import Values, gather
    from broker.discover.separating import differences
    from broker.files import require_file
    from broker.inference.onnx import OnnxEngine
    from broker.lightcurves.files import read_light_curves
    from broker.spectra.places import Spectra

    for file in (table, *tables, *value_files, *spectra_files):
        require_file(file)
    if figure is not None and figure.suffix not in (".png", ".svg", ".pdf"):
        raise click.UsageError(f"--figure {figure}: the ending says what is drawn: .png, .svg, .pdf")
    inference = load_settings(config).inference
    sample = gather(
        OnnxEngine(inference.model_repository, threads=inference.threads),
        chain.from_iterable(read_light_curves(file, text.say) for file in tables),
        Claims(table, radius, columns),
        class_name,
        project=lambda kind: kind.startswith(projected) if projected else False,
        values=[Values(file, radius, subtracted) for file in value_files],
        spectra=Spectra.of_files(spectra_files, radius, text.say) if spectra_files else None,
    )
    text.say(f"{len(sample.names)} of {sample.total} stars are {class_name} in {table.name} and have enough points")
    try:
        clusters = find_clusters(np.array(sample.embeddings).reshape(len(sample.names), -1))
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    features = {name: np.array(values, np.float64) for name, values in sample.features.items()}
    found = differences(clusters.label, features, sample.types)
    others = {kind: clusters.project(np.array(place)) for kind, place in sorted(sample.others.items())}
    if figure is not None:
        draw(figure, class_name, clusters, found, features, others)
    projections = [_projection(kind, clusters, place) for kind, place in others.items()]
    if as_json:
        _print_json(class_name, clusters, found, projections)
    else:
        _print(class_name, clusters, found[:top], projections)


class _Projection(NamedTuple):
    """Stars of a type that is none of the class, among its clusters."""

    kind: str
    stars: int
    inside: list[int]
    """How many are in each cluster."""
    outside: int
    """How many lie outside the class."""


def _projection(kind: str, clusters: Clusters, place: NDArray[np.float64]) -> _Projection:
    nearest, outside = clusters.belonging(place)
    return _Projection(kind, len(place), _sizes(clusters, nearest[~outside]), int(outside.sum()))


def _sizes(clusters: Clusters, label: NDArray[np.intp]) -> list[int]:
    """How many of ``label`` (n,) are of each cluster."""
    import numpy as np

    sizes: list[int] = np.bincount(label, minlength=int(clusters.label.max()) + 1).tolist()
    return sizes


def _print_json(
    class_name: str, clusters: Clusters, found: Sequence[Difference], projections: Sequence[_Projection]
) -> None:
    summary = {
        "class": class_name, "verdict": clusters.verdict, "sizes": _sizes(clusters, clusters.label),
        "stability": clusters.stability, "silhouette": clusters.silhouette, "pValue": clusters.p_value,
        "valley": clusters.valley, "lookedAt": clusters.looked_at,
    }  # fmt: skip
    click.echo(json.dumps({k: None if v != v else v for k, v in summary.items()}))
    for one in found:
        click.echo(json.dumps(asdict(one)))
    for other in projections:
        click.echo(json.dumps({"projected": other.kind, "clusters": other.inside, "outside": other.outside}))


def _print(
    class_name: str, clusters: Clusters, found: Sequence[Difference], projections: Sequence[_Projection]
) -> None:
    text.echo(f"{class_name}: {clusters.verdict}: {clusters.meaning}")
    sizes = _sizes(clusters, clusters.label)
    if len(sizes) > 1:
        text.echo(
            f"sizes {sizes}, stability {[round(s, 2) for s in clusters.stability]} (0.75), silhouette "
            f"{clusters.silhouette:.2f}, p {clusters.p_value:.2f} (0.05), valley {clusters.valley:.2f} (0.5); "
            f"{clusters.looked_at} divisions tested"
        )
        text.echo(f"{'feature':<44} {'cluster':>7} {'inside':>9} {'outside':>9} {'effect':>7} {'q':>8} {'stars':>6}")
    for one in found:
        text.echo(
            text.printable(
                f"{one.feature:<44} {one.cluster:>7} {one.inside:>9.3g} {one.outside:>9.3g} {one.effect:>+7.2f} "
                f"{one.q_value:>8.1g} {one.objects:>6}"
            )
        )
    for other in projections:
        inside = f"of {other.stars} stars {other.inside} in the clusters"
        text.echo(text.printable(f"{other.kind}: {inside}, {other.outside} outside the class"))
