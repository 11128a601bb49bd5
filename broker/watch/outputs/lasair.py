"""Annotations for Lasair (https://lasair.readthedocs.io, "Annotators"): ``POST <url>/annotate/`` with a form.

The list's URL is the API's, such as ``https://lasair.lsst.ac.uk/api``. Lasair keeps one annotation of an object and
topic: a later one, or one that comes again, is written over it. Its fields and their lengths are those of Lasair's own
client (``lasair.lasair_client.annotate``) and of its server's serializer.
"""

from __future__ import annotations

import json
from typing import Final

from pydantic import Field

from broker.watch.outputs import receiver

NEEDS_TOKEN: Final = True
_LONGEST_VERSION: Final = 16
_LONGEST_TEXT: Final = 1024
_LONGEST_VALUES: Final = 4096


class Options(receiver.Options):
    """What a list says of Lasair."""

    topic: str = Field(min_length=1, max_length=255, pattern=r"^\S+$")
    """The annotator, which Lasair's team makes for a user."""


def fields(told: receiver.Told, topic: str) -> dict[str, str]:
    """Of the form."""
    one = told.annotation
    return {
        "objectId": one.object_id,
        "topic": topic,
        "classification": one.best_class,
        "version": (one.model_version or "0")[:_LONGEST_VERSION],
        "explanation": told.sentence()[:_LONGEST_TEXT],
        "classdict": _values(told),
        "url": link if (link := told.link) is not None and len(link) <= _LONGEST_TEXT else "",
    }


def _values(told: receiver.Told) -> str:
    """JSON of bounded length: where all is too much, the probabilities alone."""
    for values in (told.values() | {"probabilities": told.probabilities()}, {"probabilities": told.probabilities()}):
        if len(text := json.dumps(values, allow_nan=False)) <= _LONGEST_VALUES:
            return text
    return "{}"


def send(told: receiver.Told, options: Options, service: receiver.Receiver) -> None:
    """Raises OutputError, also where Lasair says with status 200 what is wrong."""
    answer = service.post_form("/annotate/", fields(told, options.topic), f"Token {service.token}")
    try:
        said = json.loads(answer.body)
    except ValueError:
        said = {}
    if not isinstance(said, dict) or said.get("status") != "success":
        raise receiver.OutputError(f"{answer.host} has not taken it{service.quoted(answer)}")
