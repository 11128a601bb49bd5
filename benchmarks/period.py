"""Period search: Trifid's against nifty-ls over the full grid, on real Catalina light curves with known periods; and in
two bands, from few points, against the same search with each band's median taken off and against astropy.

    PYTHONPATH=. python benchmarks/period.py [--two-bands] [--stars 120]
"""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import click
import nifty_ls
import numpy as np
import pyarrow.parquet as pq
from astropy.timeseries import LombScargleMultiband
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from broker.assemble import warm_up
from broker.assemble.chromatic import AMPLITUDE_EXPONENT
from broker.assemble.period import MAX_FREQUENCY, find_period

_SHARED = Path(__file__).resolve().parents[2] / "shared"
FEW = 20
"""Points of each star in two bands, at random."""
STARS = 200
SAMPLES_PER_PEAK = 5
Times = NDArray[Any]
_OFFSETS, _MEDIANS = "Trifid, an offset for each band", "Trifid, medians taken off"
_ASTROPY = "astropy LombScargleMultiband"


def recovered(found: float, true: float) -> bool:
    """Within 1 %, counting half and twice: an eclipsing binary's two minima may be alike."""
    return any(abs(found / (factor * true) - 1) < 0.01 for factor in (0.5, 1.0, 2.0))


@threadpool_limits.wrap(limits=1)
def report(path: Path) -> None:
    """Measure both searches on the same stars, one thread each, and print what each found and spent."""
    if not path.exists():
        print(f"{path} does not exist: nothing to measure", file=sys.stderr)
        return
    table = pq.read_table(path, columns=["mjd", "vmag", "period"])
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
def report_two_bands(path: Path, most: int) -> None:
    """Periods found from FEW points in g and r of ZTF stars whose period the AAVSO's catalogue has; one thread."""
    if not path.exists():
        print(f"{path} does not exist: nothing to measure", file=sys.stderr)
        return
    good = dict.fromkeys((_OFFSETS, _MEDIANS, _ASTROPY), 0)
    spent = dict.fromkeys(good, 0.0)
    stars = 0
    for number, row in enumerate(pq.read_table(path).to_pylist()):
        band, magnitude = np.array(row["band"]), np.array(row["mag"])
        usable = np.flatnonzero(np.isin(band, ["ztf:g", "ztf:r"]) & np.isfinite(magnitude))
        if row["label"] is None or not row["period"] or len(usable) < FEW:
            continue
        if stars == most:
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
            _OFFSETS: partial(find_period, t, m, weight, start),
            _MEDIANS: partial(find_period, t, m - medians, weight),
            _ASTROPY: partial(astropy_period, t, m, b),
        }.items():
            begun = time.process_time()
            result = search()
            spent[name] += time.process_time() - begun
            found = result if isinstance(result, float) else 1 / result.frequency
            good[name] += recovered(found, row["period"])
    print(f"{FEW} points in g and r of {stars} ZTF stars:")
    for name in good:
        print(f"{name}: {good[name]} periods, {1e3 * spent[name] / stars:.2f} ms CPU an object")


@click.command(help=__doc__)
@click.option("--two-bands", is_flag=True, help="Without the light curves in one band.")
@click.option("--stars", default=40, show_default=True, help="In two bands, at most: astropy takes seconds for each.")
@click.option("--shared", type=click.Path(path_type=Path), default=_SHARED, envvar="TRIFID_SHARED")
def main(two_bands: bool, stars: int, shared: Path) -> None:
    warm_up()
    if not two_bands:
        report(shared / "data" / "css_v.parquet")
    report_two_bands(shared / "data" / "multiband" / "ztf_dr3_vsx.parquet", stars)


if __name__ == "__main__":
    main()
