"""Period search: Trifid's against nifty-ls over the full grid, on real Catalina light curves with known periods."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import nifty_ls
import numpy as np
import pyarrow.parquet as pq
from threadpoolctl import threadpool_limits

from broker.assemble import warm_up
from broker.assemble.period import MAX_FREQUENCY, find_period

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "css_v.parquet"
STARS = 200
SAMPLES_PER_PEAK = 5


def recovered(found: float, true: float) -> bool:
    """Within 1 %, counting half and twice: an eclipsing binary's two minima may be alike."""
    return any(abs(found / (factor * true) - 1) < 0.01 for factor in (0.5, 1.0, 2.0))


@threadpool_limits.wrap(limits=1)
def report() -> None:
    """Measure both searches on the same stars, one thread each, and print what each found and spent."""
    if not DATA.exists():
        print(f"{DATA} does not exist: nothing to measure", file=sys.stderr)
        return
    warm_up()
    table = pq.read_table(DATA, columns=["mjd", "vmag", "period"])
    rows = np.random.default_rng(0).choice(len(table), STARS, replace=False)
    good = {"Trifid": 0, "nifty-ls": 0}
    spent = {"Trifid": 0.0, "nifty-ls": 0.0}
    for row in rows.tolist():
        time_ = np.array(table["mjd"][row].as_py())
        magnitude = np.array(table["vmag"][row].as_py())
        order = np.argsort(time_)
        t, m = time_[order], -magnitude[order]
        weight = np.full(len(t), 1 / len(t))
        true = table["period"][row].as_py()
        start = time.process_time()
        found = 1 / find_period(t, (m - m.mean()) / m.std(), weight).frequency
        spent["Trifid"] += time.process_time() - start
        good["Trifid"] += recovered(found, true)
        span = float(np.ptp(t))
        count = int(span * MAX_FREQUENCY * SAMPLES_PER_PEAK)
        start = time.process_time()
        result = nifty_ls.lombscargle(t, m, fmin=1 / span, fmax=MAX_FREQUENCY, Nf=count, nterms=2)
        spent["nifty-ls"] += time.process_time() - start
        grid = result.fmin + result.df * np.arange(result.Nf)
        good["nifty-ls"] += recovered(1 / grid[np.argmax(result.power)], true)
    for name in good:
        print(f"{name}: {good[name] / STARS:.1%} of {STARS} periods, {1e3 * spent[name] / STARS:.2f} ms CPU an object")
    print(f"ratio {spent['nifty-ls'] / spent['Trifid']:.1f}")


if __name__ == "__main__":
    report()
