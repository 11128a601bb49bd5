"""Counting who is right where model and catalogue disagree."""

from __future__ import annotations

import numpy as np

from broker.records import KnownObject
from broker.taxonomy import CLASS_INDEX
from training.disagreements import Disagreements, _row, _third, markdown
from training.live import Answers


def star(text: str) -> KnownObject:
    return KnownObject("vsx", "V1", text, None, 0.1)


def answers(*leading: tuple[str, float]) -> Answers:
    """The probability of the leading class, alone in the set; the rest is EW's, or ROT's where EW leads."""
    probabilities = np.zeros((len(leading), 10))
    in_set = np.zeros((len(leading), 10), np.bool_)
    for row, (name, p) in enumerate(leading):
        probabilities[row, CLASS_INDEX["EW" if name != "EW" else "ROT"]] = 1.0 - p
        probabilities[row, CLASS_INDEX[name]] = p
        in_set[row, CLASS_INDEX[name]] = True
    nan = np.full(len(leading), np.nan)
    return Answers(probabilities, in_set, np.full(len(leading), 100, np.int32), nan, nan, nan > 0, probabilities)


def test_the_third_source_decides() -> None:
    known = [star(text) for text in ("EW", "EW", "EW", "EW", "RRAB", "M", "EW", "M")]
    third = [_third(text, None) for text in ("RRAB", "EW", None, "ROT", "RRAB", "SR", "EW", "M")]
    said = answers(
        ("RRAB", 0.99), ("RRAB", 0.99), ("RRAB", 0.99), ("RRAB", 0.99), ("RRAB", 0.99), ("SR", 0.97), ("RRAB", 0.9),
        ("SR", 0.99),
    )  # fmt: skip
    of_parents = _row("x", "parent", known, third, said, 0.95)
    # 8 stars; four flagged: one for the model, one for VSX (of the four on which both sources agree), two undecided.
    assert of_parents == Disagreements("x", 8, "parent", 4, 1, 1, 2, 4, 1, ("EW -> RRAB (4)",))
    of_classes = _row("x", "class", known, third, said, 0.95)
    assert of_classes == Disagreements("x", 8, "class", 2, 1, 1, 0, 4, 1, ("M -> SR (2)",))
    assert "| x | 8 | class | 2 | 1 | 1 | 0 | 4 | 1 | M -> SR (2) |" in markdown([of_parents, of_classes])


def test_the_third_source_is_the_own_label_else_the_gcvs() -> None:
    gcvs = KnownObject("gcvs", None, "SR", None, 0.1)
    assert _third("EW|EB", gcvs) == {"EW", "EB"}
    assert _third(None, gcvs) == {"SR"}
    assert _third(None, KnownObject("gcvs", None, "SR:", None, 0.1)) == frozenset()
    assert _third(None, None) == frozenset()
