"""``trifid similar``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from broker.cli import options, text
from broker.similar.answer import BY, MAX_LIMIT

if TYPE_CHECKING:
    from broker.config import Settings
    from broker.records import ObjectState
    from broker.similar.answer import Answer
    from broker.similar.search import Similar

_MOST: Final = 100
"""Objects of a file."""


@click.command()
@click.argument("what", metavar="ID|FILE")
@click.option(
    "--by",
    type=click.Choice(BY),
    help="Which of the other objects' embeddings are compared: of all that is known together, or of one modality. By "
    "default all for an object, and what the file holds for a file.",
)
@click.option(
    "--of",
    type=click.Choice(BY),
    help="With which embedding of its own; that of --by by default. --of spectrum --by light-curve finds the light "
    "curves of what has such a spectrum. A file of spectra does so with --by light-curve alone.",
)
@click.option(
    "--among",
    "conditions",
    multiple=True,
    metavar="CONDITION",
    help='Only these: "class=RRAB|RRC", class=Eclipsing, survey=ztf, "mag<18", "probability>0.9", "detections>50", '
    "cone=RA,DEC,ARCSEC. Several in one text with spaces between, or the option again; all have to hold.",
)
@click.option("--limit", type=click.IntRange(1, MAX_LIMIT), default=10, show_default=True, help="So many objects.")
@options.json_lines
@options.config
def similar(
    what: str,
    by: str | None,
    of: str | None,
    conditions: tuple[str, ...],
    limit: int,
    as_json: bool,
    config: Path | None,
) -> None:
    """Find the live objects that are most similar to one, to a light curve or to a spectrum.

    ID is survey:id, as ztf:ZTF18abcdefg, or an id alone, of an object that the service keeps; FILE a table of light
    curves, as `trifid classify --lightcurves` reads it, or of spectra, as `trifid spectra` does. Similarity is the
    cosine between embeddings, 1 for the same (docs/similar.md). Asks the service's Redis, and changes nothing.
    """
    import json

    from broker.build import build_similar
    from broker.config import load_settings
    from broker.similar.among import among
    from broker.similar.query import like_object, like_vectors

    meant = among(conditions)
    settings = load_settings(config)
    with closing(build_similar(settings)) as found:
        found.check()
        path = Path(what)
        answers: Iterator[tuple[str, Answer]]
        if path.exists():
            kind, states = _read(path, settings)
            from broker.build import local_pipeline
            from broker.similar.query import vectors_of

            vectors = vectors_of(local_pipeline(settings, version=found.version), states)
            answers = (
                (state.object_id, like_vectors(found, one, by or kind, of, meant, limit))
                for state, one in zip(states, vectors, strict=True)
            )
        else:
            name = _name(what, settings, found)
            answers = ((":".join(name), like_object(found, name, by or "all", of, meant, limit)) for _ in range(1))
        for asked, answer in answers:
            if as_json:
                for match in answer.matches:
                    click.echo(json.dumps({"similarTo": asked, **match.record()}))
            else:
                _show(asked, answer)
            if not answer.complete:
                text.echo(f"{asked}: there may be more: the conditions leave few objects of very many", err=True)


def _show(asked: str, answer: Answer) -> None:
    text.echo(f"similar to {text.printable(asked)}")
    text.echo(f"  {'object':<32} {'cosine':>7}  {'class':<6} {'p':>5} {'mag':>6} {'points':>6} {'ra':>10} {'dec':>10}")
    for one in answer.matches:
        magnitude = "" if one.magnitude is None else f"{one.magnitude:.2f}"
        text.echo(
            text.printable(
                f"  {one.survey + ':' + one.object_id:<32} {one.similarity:7.4f}  {one.class_name:<6} "
                f"{one.probability:5.2f} {magnitude:>6} {one.detections:>6} {one.ra:10.5f} {one.dec:10.5f}"
            )
        )
    if not answer.matches:
        text.echo("  none")


def _name(given: str, settings: Settings, found: Similar) -> tuple[str, str]:
    """The object that a name stands for, of the surveys of the settings; the error of the first where there is none."""
    from broker.similar.search import UnknownToSetsError
    from broker.surveys import load_surveys

    surveys = [survey.name for survey in load_surveys(settings.surveys)]
    survey, colon, object_id = given.partition(":")
    names = [(survey, object_id)] if colon and survey in surveys else [(survey, given) for survey in surveys]
    problem: UnknownToSetsError | None = None
    for name in names:
        try:
            found.vector_of(name, "all")
        except UnknownToSetsError as error:
            problem = problem or error
        else:
            return name
    raise click.ClickException(f"{given!r:.80} is no file, and {problem}")


def _read(path: Path, settings: Settings) -> tuple[str, list[ObjectState]]:
    """What a file holds, by one of BY, and its objects; raises InputFileError where it is neither."""
    from itertools import islice

    from broker.errors import InputFileError
    from broker.lightcurves.files import read_light_curves
    from broker.similar.query import state_of_curve, state_of_spectrum
    from broker.spectra.files import read_raw
    from broker.spectra.normalise import UnusableSpectrumError, to_observed

    try:
        curves = list(islice(read_light_curves(path, text.say), _MOST + 1))
        states, kind = [state_of_curve(curve) for curve in curves], "light-curve"
    except InputFileError as no_curves:
        try:
            spectra = [to_observed(raw, placed=False) for raw in islice(read_raw(path), _MOST + 1)]
        except (InputFileError, UnusableSpectrumError) as no_spectra:
            raise InputFileError(f"neither light curves ({no_curves}) nor spectra ({no_spectra})") from no_spectra
        states, kind = [state_of_spectrum(spectrum) for spectrum in spectra], "spectrum"
    if len(states) > _MOST:
        text.say(f"{path}: the first {_MOST} objects alone")
    return kind, states[:_MOST]
