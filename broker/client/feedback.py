"""Answers about objects, given to the HTTP API of ``trifid web``."""

from __future__ import annotations

import json
import urllib.request
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from broker.client.asking import answer_of


@dataclass(frozen=True, slots=True)
class FeedbackAnswer:
    """An answer that is kept, and what it changed when it was given."""

    survey: str
    object_id: str
    answer: str
    """``interesting``, ``boring`` or ``class=RRAB``."""
    note: str
    by: str
    """The name of the token that it was given with."""
    mjd: float
    """When, MJD UTC, as ``withdrawn_mjd``."""
    withdrawn_mjd: float | None
    score_before: float | None
    """Combined anomaly score of the object before and after; None where it has none, or nothing was learned."""
    score_after: float | None
    rank_before: int | None
    """Among the most anomalous objects, from 1."""
    rank_after: int | None


@dataclass(frozen=True, slots=True)
class FeedbackResult:
    """An answer that was given or withdrawn now."""

    answer: FeedbackAnswer
    learned: bool
    """Whether scores of similar objects changed with it."""
    why_not: str | None
    workers: str | None
    """Why the workers of the stream do not have it yet; None where they do."""
    entered: tuple[str, ...]
    """Objects, as ``survey:id``, that are among the 50 most anomalous now and were not before."""
    left: tuple[str, ...]
    """Those that were, and are not now."""


def give_feedback(
    url: str, name: str, answer: str, note: str = "", *, token: str | None = None, timeout: float = 60.0
) -> FeedbackResult:
    """Say of an object that it is ``interesting``, ``boring`` or ``class=RRAB``; anomaly scores learn from it at once.

    ``url`` is that of ``trifid web``, ``name`` the object as ``survey:id``, or an id that one survey has. Raises
    ConfigurationError where the answer is none or there is no such object, DependencyUnavailableError where the server
    does not answer.
    """
    found = _ask(url, "feedback", {"object": name, "answer": answer, "note": note}, token, timeout)
    return _given(found)


def undo_feedback(url: str, name: str, *, token: str | None = None, timeout: float = 60.0) -> FeedbackResult:
    """Withdraw one's own latest answer about an object; the one before counts again. Raises as ``give_feedback``."""
    return _given(_ask(url, "feedback/undo", {"object": name}, token, timeout))


def feedback_answers(
    url: str,
    name: str | None = None,
    *,
    by: str | None = None,
    limit: int = 50,
    token: str | None = None,
    timeout: float = 60.0,
) -> list[FeedbackAnswer]:
    """Answers about an object or all, of one person or all, withdrawn ones included, the latest first."""
    query = {key: value for key, value in (("object", name), ("by", by), ("limit", limit)) if value is not None}
    return [_answer(one) for one in _ask(url, f"feedback?{urlencode(query)}", None, token, timeout)["answers"]]


def _ask(url: str, path: str, body: dict[str, str] | None, token: str | None, timeout: float) -> Any:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    data = None
    if body is not None:
        data = json.dumps(body).encode()
        headers["Content-Type"] = "application/json"
    return answer_of(urllib.request.Request(f"{url.rstrip('/')}/api/v1/{path}", data, headers), timeout)


def _given(found: Any) -> FeedbackResult:
    effect = found["effect"]
    return FeedbackResult(
        _answer(found["answer"] | {key: effect[key] for key in effect if key.startswith(("score", "rank"))}),
        effect["learned"],
        effect["whyNot"],
        None if effect["workers"] == "told" else effect["workers"],
        tuple(effect["entered"]),
        tuple(effect["left"]),
    )


def _answer(one: Any) -> FeedbackAnswer:
    survey, _, object_id = one["object"].partition(":")
    return FeedbackAnswer(
        survey, object_id, one["answer"], one["note"], one["by"], one["mjd"], one["withdrawnMjd"], one["scoreBefore"],
        one["scoreAfter"], one["rankBefore"], one["rankAfter"],
    )  # fmt: skip
