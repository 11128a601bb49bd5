"""The audit of a table as one HTML file, with the light curves of the most doubtful labels."""

from __future__ import annotations

import math
from typing import Any

from broker.audit.run import Audit, Audited
from broker.records import ObjectState
from broker.times import mjd_now
from broker.web import objects
from broker.web.night import drawn
from broker.web.templating import render


def page(audit: Audit, table: str, top: int) -> str:
    """The report of the ``top`` most doubtful labels; it needs no other file."""
    rows = [_shown(row, rank) for rank, row in enumerate(audit.rows[:top], 1)]
    wrong = sum(row.likely_wrong for row in audit.rows)
    return render(
        "audit.html", table=table, rows=rows, total=audit.total, audited=len(audit.rows), wrong=wrong, made=mjd_now(),
        left_out=dict(audit.left_out.most_common()),
    )  # fmt: skip


def _shown(row: Audited, rank: int) -> dict[str, Any]:
    record = row.record(rank)
    classes = sorted(
        ((name[2:], p) for name, p in record.items() if name.startswith("p_") and p >= 0.005), key=lambda one: -one[1]
    )
    star = row.star
    state = ObjectState(star.name, star.ra, star.dec, star.light_curve, time_system=star.time_system)
    return record | {
        "classes": classes,
        "place": math.isfinite(star.ra + star.dec),
        "light_curve": drawn(objects.points(state)) if len(star.light_curve) else None,
    }
