"""Lines for people to read: annotations, and text that came from outside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from broker.records import Annotation, KnownObject

REMARKABLE: Final = 0.99
"""Combined anomaly score from which the reason is printed."""
HEADER: Final = (
    f"{'object':<24} {'survey':<9} {'class':<13} {'prob.':>5}  {'may also be':<18} {'parent':<15} {'points':>6} "
    f"{'period/d':>11} {'anomaly':>7}  most alike"
)


def printable(text: str) -> str:
    """Text from outside without what a terminal would obey: other than printable characters come as escapes.

    Line breaks are among these: one message is one line.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def lines(text: str) -> str:
    """The same for a text of several lines, which stay lines."""
    return "\n".join(map(printable, text.split("\n")))


def echo(message: object, *, err: bool = False) -> None:
    """Print a text for people, which may hold anything from outside, to stdout or stderr."""
    click.echo(lines(str(message)), err=err)


def say(message: str) -> None:
    """Print one message, which may hold anything from outside, as one line of stderr."""
    click.echo(printable(message), err=True)


def line(annotation: Annotation) -> str:
    """One annotation under HEADER; for one that is NotClassified, why."""
    return printable(_line(annotation))


def _line(annotation: Annotation) -> str:
    best = annotation.best_class
    start = f"{annotation.object_id:<24} {annotation.survey:<9} {best:<13}"
    if not annotation.classified:
        return f"{start} {'':>5}  {annotation.reason}{_known(annotation)}"
    others = " ".join(name for name in annotation.prediction_set if name != best)
    parent = "" if annotation.parent is None else f"{annotation.parent} {annotation.parents[annotation.parent]:.2f}"
    period = "" if annotation.period is None else f"{annotation.period:.6g}{'?' * annotation.period_ambiguous}"
    anomaly = "" if annotation.anomaly_score is None else f"{annotation.anomaly_score:.3f}"
    nearest = annotation.neighbours[0] if annotation.neighbours else None
    alike = "" if nearest is None else f"{nearest.object_id} ({nearest.class_name})"
    remark = "" if annotation.reason is None else f"  ({annotation.reason})"
    if annotation.combined_anomaly is not None and annotation.combined_anomaly >= REMARKABLE:
        remark += f"  STRANGE {annotation.combined_anomaly:.4f}: {annotation.anomaly_explanation}"
    return (
        f"{start} {annotation.best_probability:>5.2f}  {others:<18} {parent:<15} {annotation.detections:>6} "
        f"{period:>11} {anomaly:>7}  {alike}{remark}{_known(annotation)}"
    )


def modalities(annotation: Annotation) -> str:
    """Those that were used: ``light curve + spectrum + values (metadata)``."""
    names = {"light_curve": "light curve", "metadata": "values (metadata)"}
    return " + ".join(names.get(name, name) for name in annotation.modalities) or "nothing"


def _known(annotation: Annotation) -> str:
    """What catalogues of known variable stars have at the place, behind everything else."""
    return "".join(f"  = {known_star(known)}" for known in annotation.known_as)


def known_star(known: KnownObject) -> str:
    """A star of a catalogue: its type, name and period there, and whether the model disagrees."""
    period = "" if known.period is None else f", {known.period:.7g} d"
    verdict = "" if known.disagrees is None else f", BUT ANOTHER {known.disagrees.upper()}"
    named = "" if known.name is None else f" {known.name}"
    return f"{known.catalogue}{named}: {known.type or 'no type'}{period}{verdict}"
