"""Quantiles of groups against numpy's of each group by itself."""

from __future__ import annotations

import numpy as np
import pytest

from broker.assemble.grouped import group_median, group_quantiles

QUANTILES = (0.0, 0.05, 0.4, 0.5, 0.975, 1.0)


@pytest.mark.parametrize("shuffled", [False, True])
def test_quantiles_are_those_of_each_group(shuffled: bool) -> None:
    rng = np.random.default_rng(0)
    # None, one, two and many, and none at the end; values that come more than once.
    group = np.repeat(np.arange(6), [0, 1, 2, 300, 7, 0])
    value = rng.normal(size=len(group)).round(1)
    if shuffled:
        order = rng.permutation(len(group))
        group, value = group[order], value[order]
    before = value.copy()
    found = group_quantiles(value, group, 6, QUANTILES)
    for number in range(6):
        own = value[group == number]
        expected = np.quantile(own, QUANTILES) if len(own) else np.zeros(len(QUANTILES))
        np.testing.assert_allclose(found[:, number], expected, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(value, before)


def test_a_worked_median() -> None:
    value = np.array([5.0, 1.0, 3.0, 8.0, 2.0])
    group = np.array([2, 0, 2, 2, 0])
    # Of 1 and 2 the mean; none; of 5, 3 and 8 the 5.
    np.testing.assert_array_equal(group_median(value, group, 3), [1.5, 0.0, 5.0])


def test_values_that_are_no_number_come_last() -> None:
    found = group_quantiles(np.array([np.nan, 2.0, 1.0, 7.0]), np.array([0, 0, 0, 1]), 2, (0.0, 0.25))
    np.testing.assert_array_equal(found, [[1.0, 7.0], [1.5, 7.0]])


def test_nothing_at_all() -> None:
    np.testing.assert_array_equal(group_median(np.empty(0), np.empty(0, np.intp), 2), [0.0, 0.0])
