"""Orders within groups against a sort of all by group and value at once."""

from __future__ import annotations

import numpy as np
import pytest

from broker.assemble.grouped import group_order, order_within


def sizes(seed: int) -> np.ndarray:
    """Of groups: none, one, powers of two and their neighbours, and some at random; none and empty batches as well."""
    rng = np.random.default_rng(seed)
    fixed = [0, 1, 2, 3, 4, 5, 7, 8, 9, 31, 32, 33, 1000, 0, 1024, 1025, 0]
    return np.array([[], [0], [1], [5]][seed] if seed < 4 else rng.permutation([*fixed, *rng.integers(0, 60, 9)]), int)


@pytest.mark.parametrize("seed", range(8))
def test_orders_within_groups_are_those_of_a_sort_of_all(seed: int) -> None:
    count = sizes(seed)
    group = np.repeat(np.arange(len(count)), count)
    rng = np.random.default_rng(seed)
    for value in (
        rng.normal(size=len(group)),
        rng.integers(0, 5, len(group)).astype(np.float64),  # many are equal: these stay as they were
        np.where(rng.random(len(group)) < 0.2, np.nan, rng.choice([np.inf, -np.inf, 1.0], len(group))),
        np.arange(len(group)) * np.where(group % 2, 1.0, -1.0),  # every other group is in order
    ):
        whole = np.lexsort((value, group))
        np.testing.assert_array_equal(order_within(value, count), whole)


@pytest.mark.parametrize("groups", [7, 1 << 16, (1 << 16) + 1])
def test_order_by_group(groups: int) -> None:
    group = np.random.default_rng(1).integers(0, groups, 500)
    group[:2] = groups - 1, 0
    order = group_order(group, groups)
    assert order.tolist() == sorted(range(500), key=lambda i: (group[i], i))
