"""What all formats share: what is told, and the service that it is told to."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, urlencode

from pydantic import BaseModel, ConfigDict

from broker.config import NotifySettings
from broker.publish.annotation import PublishedAnnotation
from broker.watch import webhook
from broker.watch.webhook import Answer, WebhookError

_QUOTED: Final = 300
"""Characters of a receiver's answer in a problem."""


class OutputError(Exception):
    """An annotation that a receiver has not taken; the reason has no secret in it."""

    answered: bool = True
    """Whether the receiver has said no, and did not fail to answer: then others of its messages fail as well."""


class Options(BaseModel):
    """Base of a format's options; names as in the API."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class Told:
    """One annotation that a list has found."""

    annotation: PublishedAnnotation
    event: str
    """Its number, the same whenever it is told."""
    label: str
    """What the list calls its place."""
    public_url: str | None
    """Of ``trifid web``."""

    @property
    def link(self) -> str | None:
        """The object's page."""
        if self.public_url is None:
            return None
        survey, name = (quote(part, safe="") for part in (self.annotation.survey, self.annotation.object_id))
        return f"{self.public_url.rstrip('/')}/object/{survey}/{name}"

    def probabilities(self) -> dict[str, float]:
        """By class, rounded to six digits."""
        pairs = zip(self.annotation.class_names, self.annotation.probabilities, strict=True)
        return {name: round(float(probability), 6) for name, probability in pairs}

    def values(self) -> dict[str, float | int | str]:
        """Beside class and probabilities, what there is of it, in the names of annotations' fields."""
        one = self.annotation
        found: dict[str, float | int | str | None] = {
            "survey": one.survey, "alertId": str(one.alert_id), "mjd": one.mjd, "detections": one.detections,
            "modalities": " ".join(one.modalities), "period": one.period, "parent": one.parent,
            "anomalyScore": one.anomaly_score, "modelVersion": one.model_version or None,
        }  # fmt: skip
        return {name: value for name, value in found.items() if value is not None}

    def sentence(self) -> str:
        """What a person reads first."""
        one = self.annotation
        used = " and ".join(name.replace("_", " ") for name in one.modalities) or "nothing"
        period = "" if one.period is None else f", period {one.period:.6g} d"
        score = "" if one.anomaly_score is None else f", anomaly score {one.anomaly_score:.3f}"
        return (
            f"{one.best_class} with probability {one.best_probability:.2f} from {used} "
            f"({one.detections} detections{period}{score})"
        )


class Receiver:
    """A service at a base URL, for one delivery: ``notify.timeout_s`` is for all calls of it together."""

    def __init__(self, url: str, token: str | None, number: str, settings: NotifySettings) -> None:
        self._url, self.token, self._number, self._settings = url.rstrip("/"), token, number, settings
        self._end = time.monotonic() + settings.timeout_s

    def post_form(self, path: str, fields: Mapping[str, str], authorization: str | None) -> Answer:
        """As HTML forms are sent."""
        body = urlencode(fields).encode()
        return self.call("POST", path, body, "application/x-www-form-urlencoded", authorization)

    def post_json(self, path: str, value: Any, authorization: str | None) -> None:
        """Whatever is answered but 2xx."""
        self.call("POST", path, json.dumps(value, allow_nan=False).encode(), "application/json", authorization)

    def json(self, method: str, path: str, value: Any, authorization: str | None) -> Any:
        """Send JSON, or nothing for None, and return the JSON of the answer."""
        body = b"" if value is None else json.dumps(value, allow_nan=False).encode()
        answer = self.call(method, path, body, "application/json", authorization)
        try:
            return json.loads(answer.body)
        except ValueError:
            raise OutputError(f"{answer.host} answers no JSON") from None

    def call(self, method: str, path: str, body: bytes, content_type: str, authorization: str | None = None) -> Answer:
        """The answer, which is 2xx; raises OutputError."""
        headers = {
            "Content-Type": content_type, "Accept": "application/json", "User-Agent": "Trifid",
            "Idempotency-Key": self._number, "X-Trifid-Delivery": self._number,
        }  # fmt: skip
        if authorization is not None:
            headers["Authorization"] = authorization
        left = max(self._end - time.monotonic(), 0.001)
        networks = self._settings.webhook_networks
        try:
            answer = webhook.call(method, self._url + path, body, headers, networks, left)
        except WebhookError as error:
            failed = OutputError(str(error))
            failed.answered = error.answered
            raise failed from None
        if not 200 <= answer.status < 300:
            raise OutputError(f"{answer.host} answers {answer.status}{self.quoted(answer)}")
        return answer

    def quoted(self, answer: Answer) -> str:
        """What an answer says, for its owner to read, without the token."""
        text = answer.body.decode("utf-8", "replace")
        if self.token:
            text = text.replace(self.token, "***")
        text = "".join(c if c.isprintable() else " " for c in text[:_QUOTED]).strip()
        return f": {text}" if text else ""
