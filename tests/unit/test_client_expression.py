"""Expressions of filters: which annotations, worked out by hand, they are true of, and what is refused where."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from broker.cli.subscribe import subscribe
from broker.client import Cone, Expression, ExpressionError, Filter, PublishedAnnotation
from broker.client.expression import MAX_DEPTH, MAX_LENGTH
from broker.client.fields import FIELDS, Columns
from broker.publish.annotation import SCHEMA
from broker.records import KnownObject

STAR = PublishedAnnotation(
    survey="ztf", alert_id=1, source_id=1, object_id="a", ra=0.0, dec=60.0, mjd=61000.0,
    class_names=("RRAB", "RRC", "EA"), probabilities=(0.5, 0.45, 0.05), modalities=("light_curve",), detections=20,
    period=0.5, parents={"RRLyrae": 0.95, "Eclipsing": 0.05}, prediction_set=("RRAB", "RRC"), anomaly_score=None,
)  # fmt: skip
KNOWN = KnownObject("vsx", "RR Lyr", "RRAB", 0.567, 0.1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('class == "RRAB" and probability >= 0.5', True),
        ("class == 'RRAB' and probability > 0.5", False),
        ('parent == "RRLyrae" and parentProbability >= 0.95', True),
        ('answer == "RRLyrae"', True),
        ('class in ("M", "RRAB")', True),
        ('class not in ("M", "RRAB")', False),
        ("detections in (19, 20)", True),
        ('probability("RRC") == 0.45', True),
        ('probability("RRLyrae") == 0.95', True),
        ('probability("RRC") + probability("EA") > 0.49', True),
        ('probability("M") >= 0', False),  # which it does not name
        ("0.4 < period <= 0.5", True),
        ("0.5 < period <= 0.6", False),
        ("2 * period - 1 == 0 and 1 / period == 2 and -period < 0", True),
        ("log10(period * 200) == 2 and abs(-period) == 0.5", True),
        ("period / 0 > 1e300", True),
        ("anomalyScore > 0 or anomalyScore <= 0", False),
        ("anomalyScore != 1", False),
        ("not anomalyScore > 0.5", True),
        ("missing(anomalyScore) and not missing(period)", True),
        ("missing(realBogus + period)", True),
        ('"light_curve" in modalities and "spectrum" not in modalities', True),
        ('"spectrum" in modalities', False),
        ("known", False),
        ("known == false", True),
        ("not known and true", True),
        ('class == "M" or class == "RRAB" and detections == 20', True),
        ('(class == "M" or class == "RRAB") and detections == 21', False),
        # At declination 60, 20 arcsec of right ascension are 10 on the sky.
        ("cone(359.99444444, 60, 10.01)", True),
        ("cone(359.99444444, 60, 9.99)", False),
        ("cone(0, -60, 10)", False),
        ("\n  class\n==\t'RRAB'  ", True),
        ('"class" == survey', False),
        ("true", True),
    ],
)
def test_what_an_expression_is_true_of(text: str, expected: bool) -> None:
    assert Expression(text)(STAR) is expected


@pytest.mark.parametrize(
    ("text", "position", "reason"),
    [
        ("", 0, "an expression is needed"),
        ("clas == 'M'", 0, "no field clas; did you mean class?"),
        ("  probability > x", 16, "no field x"),
        ("'é' == survey and clas", 18, "no field clas"),
        ("class == 'RRLYR'", 9, "'RRLYR' is none of EW, SR"),
        ("'Mira' != class", 0, "'Mira' is none of"),
        ("class in ('M', 'Mira')", 15, "'Mira' is none of"),
        ("class = 'M'", 6, "write == to compare"),
        ("probability > 'high'", 14, "this is a text, and has to be a number"),
        ("class > 'M'", 8, "a text is not compared so"),
        ("probability", 0, "the whole is a number"),
        ("class and known", 0, "this is a text, and has to be true or false"),
        ("known & known", 0, "write and, or"),
        ("probability > 0.5 # sure", 18, "# means nothing here"),
        ("survey == 'a", 10, "a ' without its end"),
        ("survey == \\", 10, "means nothing here"),
        ("survey == 'a\0'", 10, "printable"),
        ("survey == ''", 10, "empty text"),
        ("1if true else 2", 0, "a letter follows a number"),
        ("klass == 'M'", 0, "means nothing"),
        ("cone(400, 0, 1)", 0, "no circle"),
        ("cone(ra, 0, 1)", 5, "cone takes numbers"),
        ("cone(1, 2)", 0, "cone takes 3 values"),
        ("probability('rrab') > 0", 12, "give one of EW"),
        ("sin(ra) > 0", 0, "no function sin"),
        ("1e999 > 1", 0, "no such number"),
        ("period in ()", 10, "an empty list"),
        ("period in (1, ra)", 14, "a list has texts or numbers"),
        ("class in modalities", 0, "give a text"),
        ("period is 1", 10, "write == or !="),
        ("missing(known)", 8, "never missing"),
        ("period > 1 +", 12, "ends too early"),
        ("x" * (MAX_LENGTH + 1), MAX_LENGTH, "are the most"),
        (" + ".join(["1"] * 200) + " > 1", 0, "parts; 300 are the most"),
        ("-" * (MAX_DEPTH + 2) + "1 > 0", MAX_DEPTH, "within each other"),
        ("(" * 900 + "1" + ")" * 900, 200, "too many nested parentheses"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_with_its_position(text: str, position: int, reason: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        Expression(text)
    assert (caught.value.position, reason in caught.value.reason) == (position, True), str(caught.value)
    assert str(caught.value).startswith(f"character {position + 1}: ")


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')", "().__class__.__bases__", "survey.format(1)", "[1 for _ in (1,)] == 1",
        "(lambda: true)()", "probability ** 9 ** 9 > 1", "9 << 999 > 1", "f'{survey}' == 'x'", "b'a' == survey",
        "(survey := 'a') == 'a'", "true if known else false", "abs(*modalities) > 1", "abs(x=1) > 1",
        "survey[0] == 'z'", "known; known", "lambda: known", "...", "None", "1j > 0", "eval('1')", "-" * 1900 + "1 > 0",
        "not " * 450 + "known",
    ],
)  # fmt: skip
def test_nothing_but_the_language_is_taken(text: str) -> None:
    with pytest.raises(ExpressionError):
        Expression(text)


def test_expressions_say_what_filters_do_and_many_at_once() -> None:
    random = np.random.default_rng(1)
    many = []
    for number in range(500):
        first, second = np.sort(random.dirichlet((1, 1, 1)))[:0:-1]
        names = tuple(random.permutation(("RRAB", "RRC", "EA")).tolist())
        chances = (float(first), float(second), 1.0 - float(first + second))
        by_class = dict(zip(names, chances, strict=True))
        many.append(
            replace(
                STAR, object_id=str(number), class_names=names, probabilities=chances, ra=float(random.uniform(0, 1)),
                parents={"RRLyrae": by_class["RRAB"] + by_class["RRC"], "Eclipsing": by_class["EA"]},
                anomaly_score=None if number % 3 else float(random.uniform()),
                detections=int(random.integers(0, 40)), known_as=(KNOWN,) if number % 5 == 0 else (),
            )
        )  # fmt: skip
    for text, same in (
        ('class == "RRAB" and probability >= 0.6', Filter(class_name="RRAB", min_probability=0.6)),
        ('parent == "RRLyrae" and parentProbability >= 0.7', Filter(parent="RRLyrae", min_probability=0.7)),
        ("anomalyScore >= 0.5", Filter(min_anomaly_score=0.5)),
        ("detections >= 20 and not known", Filter(min_detections=20, known=False)),
        ("cone(0.5, 60, 600)", Filter(cone=Cone(0.5, 60.0, 600.0))),
    ):
        expected = [same(a) for a in many]
        assert 0 < sum(expected) < len(many)
        assert Expression(text).mask(Columns.of(many)).tolist() == expected


def test_a_constant_is_true_of_each() -> None:
    assert Expression("true").mask(Columns.of([STAR, STAR])).tolist() == [True, True]
    assert Expression("known").mask(Columns.of([])).tolist() == []


def test_the_documents_name_each_field_and_its_examples_can_be_meant() -> None:
    docs = (Path(__file__).resolve().parents[2] / "docs/watchlists.md").read_text()
    for name, (kind, _, what) in FIELDS.items():
        assert f"| `{name}` | {kind.value} | {what} |" in docs
    published = {field["name"] for field in SCHEMA["fields"]}
    assert FIELDS.keys() - published == {"class", "probability", "parentProbability", "known"}
    (block,) = re.findall(r"## Expressions\n.*?```text\n(.*?)```", docs, re.DOTALL)
    for line in block.splitlines():
        Expression(line)


def test_the_command_says_where_an_expression_is_wrong() -> None:
    done = CliRunner().invoke(subscribe, ["trifid.ztf.all", "--where", "probability >"])
    assert isinstance(done.exception, ExpressionError)
    assert str(done.exception).startswith("character 14: ")
