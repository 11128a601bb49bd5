"""The bounds that the labels set, counted on made-up stars and on the real ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from training.data import Labels
from training.datasets.tables import ObjectTable, load_objects
from training.label_limits import central_range, label_limits


@pytest.fixture(scope="module")
def table(shared: Path) -> ObjectTable:
    return load_objects(shared / "data", against_vsx=False)


def test_amplitude_is_that_of_the_central_points(table: ObjectTable) -> None:
    curve = table.light_curves[0]
    magnitude = -2.5 * np.log10(curve.flux.astype(np.float64))
    expected = np.percentile(magnitude, 97.5) - np.percentile(magnitude, 2.5)
    assert central_range(table, 0) == pytest.approx(expected)
    one = replace(curve, mjd=curve.mjd[:1], flux=curve.flux[:1])
    assert central_range(replace(table, light_curves=[one]), 0) == 0.0


def test_the_rule_behind_unconfirmed_labels_is_the_amplitude(table: ObjectTable) -> None:
    labels = Labels.from_columns(table.label, table.label_quality, table.label_is_coarse)
    text = label_limits(table, labels, np.arange(len(table)))
    below, above = (line.split("|")[2:6] for line in text.splitlines()[2:4])
    gold_m, std_m, gold_sr, std_sr = (int(a) + int(b) for a, b in zip(below, above, strict=True))
    assert (gold_m, std_m, gold_sr, std_sr) == (1614, 309, 155, 137)  # the counts of ../shared/data
    assert int(below[1]) == 0  # std: all M at or above the limit,
    assert int(above[3]) == 0  # all SR below
    assert int(below[0]) > 100  # but the GCVS has many Miras below it
    assert "| EB |" in text
