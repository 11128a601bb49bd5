from __future__ import annotations

import numpy as np
import pytest

from broker.anomaly.tails import Tail, share


def test_a_surprise_is_the_logarithm_of_the_share_that_is_as_strange() -> None:
    tail = Tail(np.arange(1.0, 1000.0))  # 1 to 999
    values = np.array([0.0, 500.0, 900.0, np.nan])
    # (1 + no smaller) / 1000: all 999, 500 of 500 to 999, 100 of 900 to 999.
    np.testing.assert_allclose(np.exp(-tail.surprise(values))[:3], [1.0, 0.501, 0.101])
    assert np.isnan(tail.surprise(values)[3])
    np.testing.assert_allclose(share(tail.surprise(values))[1], 0.499)


def test_beyond_the_largest_two_percent_it_grows_as_an_exponential_tail_does() -> None:
    # 19 values above 980, as many as 2 % of 999: 981 to 999, on average 10 above.
    tail = Tail(np.arange(1.0, 1000.0))
    at = float(np.log(1000 / 20))
    np.testing.assert_allclose(
        tail.surprise(np.array([980.0, 990.0, 1980.0])), [np.log(1000 / 21), at + 1.0, at + 100.0], rtol=1e-12
    )
    far = share(tail.surprise(np.array([1100.0, 1200.0])))
    assert 0.999 < far[0] < far[1] < 1.0


def test_scores_of_new_stars_of_the_same_kind_are_uniform() -> None:
    from scipy.stats import kstest

    rng = np.random.default_rng(0)
    scores = share(Tail(rng.gamma(2.0, size=3000)).surprise(rng.gamma(2.0, size=3000)))
    assert kstest(scores, "uniform").statistic < 0.035


@pytest.mark.parametrize("size", [2, 3, 50])
def test_few_or_equal_values_give_finite_surprises(size: int) -> None:
    surprise = Tail(np.ones(size)).surprise(np.array([0.0, 1.0, 2.0]))
    assert np.isfinite(surprise).all()
    assert (np.diff(surprise) >= 0).all()
