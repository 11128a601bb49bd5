"""Users' lists as the notifier loads them."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from broker.config import Settings
from broker.database import WATCH_CONTENTS, WATCHES
from broker.watch.content import Content
from broker.watch.lists import ListError, Lists, Terms
from broker.watch.notifier import Notifier
from broker.web.index import Index


def test_a_list_that_cannot_be_read_gets_a_problem_and_the_others_count(database: str) -> None:
    settings = Settings.model_validate({"web": {"database": database}})
    with closing(Index(database)) as index:
        lists = Lists(index.engine, settings)
        for name, dec in (("tiny", 5.0), ("torn", 5.0), ("odd", 95.0), ("good", 5.0)):
            lists.create("local", name, Terms(), Content(np.array([5.0]), np.array([dec]), [""]))
        with index.engine.begin() as connection:
            keys = {name: key for key, name in connection.execute(sa.select(WATCHES.c.id, WATCHES.c.name))}
            connection.execute(sa.update(WATCHES).where(WATCHES.c.name == "tiny").values(radius=1e-310))
            torn = sa.update(WATCH_CONTENTS).where(WATCH_CONTENTS.c.watch == keys["torn"])
            connection.execute(torn.values(places=b"torn"))
        notifier = Notifier(settings, index.engine)
        notifier._load()
        assert sorted(notifier._lists) == sorted(keys[name] for name in ("tiny", "odd", "good"))
        told = {row["name"]: row["problem"] for row in lists.of("local")}
    assert (told["tiny"], told["good"]) == (None, None)
    assert "cannot be read" in told["torn"]
    assert "cannot be used" in told["odd"]


@pytest.mark.parametrize("radius", [1e-310, 0.0, -1.0, float("nan"), float("inf"), 600_000.0])
def test_radii_that_are_none(tmp_path: Path, radius: float) -> None:
    database = f"sqlite:///{tmp_path / 'web.sqlite'}"
    settings = Settings.model_validate({"web": {"database": database}})
    with closing(Index(database)) as index, pytest.raises(ListError, match=r"0\.01 to 600"):
        Lists(index.engine, settings).create("local", "a", Terms(radius=radius), Content(names=["a"]))
