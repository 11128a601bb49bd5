"""Similar objects, asked of the HTTP API of ``trifid web``."""

from __future__ import annotations

import urllib.request
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Literal
from urllib.parse import quote, urlencode

from broker.client.asking import answer_of
from broker.errors import ConfigurationError
from broker.similar.answer import By, SimilarObject


def similar_objects(
    url: str,
    what: str | Path,
    *,
    by: By | None = None,
    of: By | None = None,
    among: Sequence[str] = (),
    limit: int = 10,
    kind: Literal["lightcurve", "spectrum"] = "lightcurve",
    token: str | None = None,
    timeout: float = 60.0,
) -> list[SimilarObject]:
    """The live objects most similar to ``what``, the most similar first.

    ``url`` is that of ``trifid web``, such as ``http://127.0.0.1:8080``; ``what`` an object as ``survey:id``, or a file
    of one light curve or spectrum, as ``kind`` says (of several the first counts). ``by``, ``of``, ``among`` and
    ``limit`` are those of ``trifid similar`` (docs/similar.md). Raises ConfigurationError where the question is wrong
    or there is no such object, DependencyUnavailableError where the server does not answer.
    """
    options = {"by": by, "of": of, "among": list(among), "limit": limit}
    query = urlencode({name: value for name, value in options.items() if value is not None}, doseq=True)
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    base = url.rstrip("/") + "/api/v1"
    if isinstance(what, Path):
        boundary = uuid.uuid4().hex
        name = "".join(c if c.isalnum() or c in "-_." else "_" for c in what.name)
        before = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
        body = before.encode() + what.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
        headers["Content-Type"] = f"multipart/form-data; boundary={boundary}"
        request = urllib.request.Request(f"{base}/similar/{kind}?{query}", body, headers, method="POST")
        (answer, *_) = answer_of(request, timeout)["answers"] or [{"objects": [], "problem": "nothing in it"}]
        if answer["problem"] is not None:
            raise ConfigurationError(f"{what}: {answer['problem']}")
    else:
        survey, colon, object_id = what.partition(":")
        if not colon:
            raise ConfigurationError(f"{what!r:.80} is no survey:id, as ztf:ZTF18abcdefg")
        path = f"{base}/objects/{quote(survey, safe='')}/{quote(object_id, safe='')}/similar"
        answer = answer_of(urllib.request.Request(f"{path}?{query}", headers=headers), timeout)
    return [SimilarObject.of_record(one) for one in answer["objects"]]
