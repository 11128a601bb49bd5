"""Period search: Trifid's against nifty-ls over the full grid, on real Catalina light curves with known periods; and in
two bands, from few points, against the same search with each band's median taken off and against astropy."""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import nifty_ls
import numpy as np
import pyarrow.parquet as pq
from astropy.timeseries import LombScargleMultiband
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from broker.assemble import warm_up
from broker.assemble.chromatic import AMPLITUDE_EXPONENT
from broker.assemble.period import MAX_FREQUENCY, find_period

_FOLDER = Path(__file__).resolve().parents[2] / "shared" / "data"
DATA = _FOLDER / "css_v.parquet"
TWO_BANDS = _FOLDER / "multiband" / "ztf_dr3_vsx.parquet"
FEW = 20
"""Points of each star in two bands, at random."""
FEW_STARS = 40
"""astropy takes seconds for each."""
STARS = 200
SAMPLES_PER_PEAK = 5
Times = NDArray[Any]


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


def astropy_period(t: Times, magnitude: Times, band: Times) -> float:
    """Period in days: one sine for all bands and an offset for each (VanderPlas & Ivezic 2015)."""
    span = float(np.ptp(t))
    grid = np.arange(1 / span, MAX_FREQUENCY, 1 / (SAMPLES_PER_PEAK * span))
    power = LombScargleMultiband(t, magnitude, band, nterms_base=1, nterms_band=0).power(grid, method="flexible")
    return float(1 / grid[np.argmax(power)])


@threadpool_limits.wrap(limits=1)
def report_two_bands() -> None:
    """Periods found from FEW points in g and r of ZTF stars whose period the AAVSO's catalogue has; one thread."""
    if not TWO_BANDS.exists():
        print(f"{TWO_BANDS} does not exist: nothing to measure", file=sys.stderr)
        return
    good = {"Trifid, an offset for each band": 0, "Trifid, medians taken off": 0, "astropy LombScargleMultiband": 0}
    spent = dict.fromkeys(good, 0.0)
    stars = 0
    for number, row in enumerate(pq.read_table(TWO_BANDS).to_pylist()):
        band, magnitude = np.array(row["band"]), np.array(row["mag"])
        usable = np.flatnonzero(np.isin(band, ["ztf:g", "ztf:r"]) & np.isfinite(magnitude))
        if row["label"] is None or not row["period"] or len(usable) < FEW:
            continue
        if stars == FEW_STARS:
            break
        stars += 1
        chosen = np.random.default_rng(number).permutation(usable)[:FEW]
        chosen = chosen[np.lexsort((np.array(row["mjd"])[chosen], band[chosen]))]
        t, b = np.array(row["mjd"])[chosen], band[chosen]
        m = -magnitude[chosen] * np.where(
            b == "ztf:g", (475 / 547) ** AMPLITUDE_EXPONENT, (637 / 547) ** AMPLITUDE_EXPONENT
        )
        weight = np.full(FEW, 1 / FEW)
        start = np.unique([0, int(np.sum(b == "ztf:g")), FEW]).astype(np.intp)
        medians = np.where(b == "ztf:g", *(np.median(m[b == x]) if (b == x).any() else 0.0 for x in ("ztf:g", "ztf:r")))
        for name, search in {
            "Trifid, an offset for each band": partial(find_period, t, m, weight, start),
            "Trifid, medians taken off": partial(find_period, t, m - medians, weight),
            "astropy LombScargleMultiband": partial(astropy_period, t, m, b),
        }.items():
            begun = time.process_time()
            result = search()
            spent[name] += time.process_time() - begun
            found = result if isinstance(result, float) else 1 / result.frequency
            good[name] += recovered(found, row["period"])
    print(f"{FEW} points in g and r of {stars} ZTF stars:")
    for name in good:
        print(f"{name}: {good[name]} periods, {1e3 * spent[name] / stars:.2f} ms CPU an object")


if __name__ == "__main__":
    report()
    report_two_bands()
