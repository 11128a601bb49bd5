"""Types of VSX and the GCVS in terms of our classes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from broker.catalog.types import known_type


@pytest.mark.parametrize(
    ("text", "name", "classes", "comparable"),
    [
        ("EW", "EW", "EW", True),
        ("EW/KW", "EW", "EW", True),
        ("EA/SD:", "EA", "EA", False),
        ("E:/RS", "Eclipsing", "EA EB EW", False),
        ("EC", "EW", "EW", True),
        ("EW|ESD", "Eclipsing", "EW EB", True),
        ("EC|RRC|ESD", None, "EW RRC EB", True),
        ("EA|DCEP", None, "EA", False),
        ("RR", "RRLyrae", "RRAB RRC", True),
        ("RR:", "RRLyrae", "RRAB RRC", False),
        ("RR(B)", "RRLyrae", "RRAB RRC", True),
        ("RRAB/BL", "RRAB", "RRAB", True),
        ("DSCT|RRc", None, "DSCT RRC", True),
        ("HADS(B)", "HADS", "HADS", True),
        ("SXPHE", "DeltaScuti", "HADS DSCT", True),
        ("DSCT+GDOR", "DSCT", "DSCT", True),
        ("GDOR+DSCT", "DSCT", "DSCT", True),
        ("EA + ROT", "EA", "EA ROT", True),
        ("BY+UV", "ROT", "ROT", True),
        ("EP+ROT:", "ROT", "ROT", False),
        ("UG+E", None, "EA EB EW", False),
        ("EA+HB", "EA", "EA", False),
        ("SRS", "SR", "SR", True),
        ("M|SR", "LongPeriod", "M SR", True),
        ("LB", "LongPeriod", "M SR", True),
        ("DCEP-FU(B)", None, "", False),
        ("DCEPS", None, "", False),
        ("EP", None, "", False),
        ("DSCT|GDOR|SXPHE", None, "DSCT HADS", False),
        ("DSCT+GDOR|EW", None, "DSCT EW", True),
        ("TTS/ROT", None, "", False),
        ("ELL", None, "", False),
        ("VAR", None, "", False),
        ("CST", None, "", False),
        ("", None, "", False),
        ("  M ", "M", "M", True),
        ("||+", None, "", False),
    ],
)
def test_what_a_type_says(text: str, name: str | None, classes: str, comparable: bool) -> None:
    found = known_type(text)
    assert (found.class_name, set(found.classes), found.comparable) == (name, set(classes.split()), comparable)


def test_every_type_of_the_published_mapping(shared: Path) -> None:
    mapping = json.loads((shared / "data" / "vsx_mapping.json").read_text())
    found = {text: known_type(text) for text in mapping}
    assert {text: known.class_name for text, known in found.items()} == {t: m["label"] for t, m in mapping.items()}
    assert {text for text, known in found.items() if not known.comparable} == {
        text for text, entry in mapping.items() if entry["quality"] == "weak"
    }


def test_every_labelled_star_of_vsx(shared: Path) -> None:
    table = pq.read_table(shared / "data" / "vsx_2022.parquet", columns=["vsx_type", "label"])
    pairs = Counter(zip(table["vsx_type"].to_pylist(), table["label"].to_pylist(), strict=True))
    labelled = {(text, label) for text, label in pairs if label is not None}
    assert ("EW/KW", "EW") in labelled
    assert {(text, label) for text, label in labelled if known_type(text).class_name != label} == set()
