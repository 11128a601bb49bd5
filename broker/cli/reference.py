"""``trifid reference``."""

from __future__ import annotations

from pathlib import Path

import click

from broker.cli import options, text


@click.group()
def reference() -> None:
    """The set of known objects that alerts are compared with."""


@reference.command()
@options.config
def load(config: Path | None) -> None:
    """Put the reference set of the model repository into Redis as its model's, replacing an earlier one.

    `trifid run` does this by itself where Redis has none of this model, or another than the manifest names. Sets of
    other models stay: workers of two model versions can run side by side.
    """
    from broker.build import put_reference_set
    from broker.config import load_settings

    reference_set = put_reference_set(load_settings(config))
    text.echo(f"reference set {reference_set.version} of {reference_set.model}: {len(reference_set)} embeddings")


@reference.command()
@options.config
def show(config: Path | None) -> None:
    """Say what the reference set of the model repository holds: embeddings and calibration of each stratum."""
    from broker.anomaly.strata import every_stratum, stratum_name
    from broker.build import load_reference_set
    from broker.config import load_settings

    reference_set = load_reference_set(load_settings(config))
    text.echo(f"reference set {reference_set.version} of {reference_set.model}: {len(reference_set)} embeddings")
    for number in every_stratum():
        stratum = reference_set.strata.get(number)
        if stratum is None:
            text.echo(f"{stratum_name(number)}: nothing, no score")
            continue
        line = f"{stratum.name}: {len(stratum.embeddings)} embeddings, {len(stratum.calibration)} calibration distances"
        if stratum.problem is not None:
            line += ", no score"
        else:
            line += f", score 0.99 from distance {stratum.calibration[int(0.99 * len(stratum.calibration))]:.3f}"
        text.echo(line)
