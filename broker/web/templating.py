"""Templates, and how they write numbers and times: of the pages, and of reports that are files of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from broker import __version__
from broker.publish.annotation import best_of
from broker.taxonomy import CLASSES, NOT_CLASSIFIED, OTHER, PARENT_CLASSES, PARENT_OF
from broker.times import datetime_of

STATIC: Final = Path(__file__).with_name("static")
_WORDS: Final = {c.name: c.description for c in (*CLASSES, OTHER, NOT_CLASSIFIED)} | {
    p.name: p.description for p in PARENT_CLASSES
}


def render(template: str, **values: Any) -> str:
    """A page; values are escaped."""
    return _templates.get_template(template).render(values)


def page_address(survey: str, object_id: str) -> str:
    """The path of an object's page."""
    return f"/object/{quote(survey, safe='')}/{quote(object_id, safe='')}"


def _inline(name: str) -> Markup:
    """A script or style sheet of ours as it stands in a file that has to do without others."""
    text = (STATIC / name).read_text("utf-8")
    assert "</" not in text, f"{name} would end the element that it stands in"
    return Markup(text)


def _utc(mjd: float | None, form: str = "%Y-%m-%d %H:%M") -> str:
    try:
        return "" if mjd is None else f"{datetime_of(mjd):{form}}"
    except (OverflowError, ValueError):
        return ""


def _number(value: float | None, digits: int) -> str:
    """With a minus sign that is one, and a dash for nothing."""
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def _period(days: float | None) -> str:
    return "–" if days is None else f"{days:.6f}" if days < 1 else f"{days:.5f}" if days < 10 else f"{days:.2f}"


def _sexagesimal(degrees: float, hours: bool) -> str:
    """``17:57:48.50`` or ``+04:41:36.2``."""
    unit = 15.0 if hours else 1.0
    ticks = round(abs(degrees) / unit * 3600 * (100 if hours else 10))
    scale = 100 if hours else 10
    seconds, part = divmod(ticks, scale)
    sign = "" if hours else "−" if degrees < 0 else "+"
    first = seconds // 3600 % 24 if hours else seconds // 3600
    return f"{sign}{first:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}.{part:0{2 if hours else 1}d}"


def _words(name: str | None) -> str:
    return _WORDS.get(name or "", "")


_templates: Final = Environment(
    loader=PackageLoader("broker.web"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
_templates.globals.update(version=__version__, Markup=Markup, address_of=page_address, inline=_inline)
_templates.globals.update(parent_of=PARENT_OF.get, best_of=best_of)
_templates.filters.update(
    utc=_utc, number=_number, period=_period, sexagesimal=_sexagesimal, words=_words, quoted=lambda s: quote(s, safe="")
)
