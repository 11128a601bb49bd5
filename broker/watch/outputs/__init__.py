"""What lists may send to other services, one annotation a message, in the format that each of them takes.

A format is a module's ``Options``, what the list's owner has to say of the receiver, and ``send``, which raises
OutputError where the receiver has not taken an annotation. Whatever was taken in an attempt that failed later may be
sent again: a format either writes over what it wrote before or has a number by which the receiver tells.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any, Final

from pydantic import ValidationError

from broker.config import NotifySettings
from broker.publish.annotation import read
from broker.watch.outputs import gcn, lasair, skyportal, voevent
from broker.watch.outputs.receiver import Options, OutputError, Receiver, Told

__all__ = ["FORMATS", "PLAIN", "OutputError", "check", "send"]
PLAIN: Final = "slack"
"""The format of digests, which is none of these."""


FORMATS: Final[Mapping[str, ModuleType]] = {"lasair": lasair, "skyportal": skyportal, "voevent": voevent, "gcn": gcn}


def check(name: str, options: Mapping[str, Any], token: str | None) -> dict[str, Any]:
    """The options of a format with its defaults; raises ValueError."""
    module = FORMATS.get(name)
    if module is None:
        raise ValueError(f"format {name!r}: give {PLAIN}, {', '.join(FORMATS)}")
    try:
        found: Options = module.Options.model_validate(dict(options))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"options of {name}: {where}: {first['msg']}") from None
    if module.NEEDS_TOKEN and not token:
        raise ValueError(f"{name} needs a token")
    return found.model_dump()


def send(watch: Mapping[str, Any], match: Mapping[str, Any], number: str, settings: NotifySettings) -> None:
    """Send what a row of MATCHES has found for one of WATCHES; raises OutputError.

    ``number`` is that of the message, the same in each attempt.
    """
    module = FORMATS[watch["format"]]
    (annotation,) = read(match["payload"], str(watch["topic"]))
    receiver = Receiver(str(watch["webhook"]), watch["token"], number, settings)
    told = Told(annotation, match["event"], match["label"], settings.public_url)
    module.send(told, module.Options.model_validate_json(watch["options"] or "{}"), receiver)
