"""How many objects became members of a class, as `trifid web` counts them while it fills its index."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from broker.metrics import WEB_NEW_MEMBERS
from broker.publish.annotation import PublishedAnnotation
from broker.taxonomy import CLASS_NAMES
from broker.web.index import Index
from tests.unit.publish.test_messages import ANNOTATION, NOT_CLASSIFIED, one, publish


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    index = Index(f"sqlite:///{tmp_path / 'web.sqlite'}")
    yield index
    index.close()


def of(object_id: str, class_name: str, alert_id: int, day: float = 0.0) -> PublishedAnnotation:
    given = replace(ANNOTATION, object_id=object_id, alert_id=alert_id, mjd=59000.0 + day, trigger="alert")
    if class_name == "NotClassified":
        given = replace(NOT_CLASSIFIED, object_id=object_id, alert_id=alert_id, mjd=59000.0 + day, trigger="alert")
    else:
        given = replace(given, probabilities=tuple(float(name == class_name) for name in CLASS_NAMES))
    return one(publish(given)[0])


def counted(index: Index, *annotations: PublishedAnnotation) -> Counter[str]:
    def now() -> Counter[str]:
        return Counter({name: int(WEB_NEW_MEMBERS.labels(name)._value.get()) for name in CLASS_NAMES})

    before = now()
    index.add(annotations)
    return now() - before


def test_an_object_counts_where_its_class_is_new_to_it(index: Index) -> None:
    first = [of("a", "RRAB", 1), of("b", "EW", 2), of("c", "NotClassified", 3)]
    assert counted(index, *first) == {"RRAB": 1, "EW": 1}
    assert counted(index, *first) == {}  # read again, after a failure
    # The same class again; another one; the first one of an object that had none.
    assert counted(index, of("a", "RRAB", 4, 1), of("b", "EA", 5, 1), of("c", "M", 6, 1)) == {"EA": 1, "M": 1}
    # Of two alerts in one batch the later one counts, whatever their order; an alert that comes late does not.
    assert counted(index, of("a", "RRC", 8, 3), of("a", "EW", 7, 2)) == {"RRC": 1}
    assert counted(index, of("a", "ROT", 9, 0.5)) == {}
    assert counted(index, of("a", "NotClassified", 10, 4)) == {}
    assert index.contents()["objects"] == 3


def test_more_objects_than_are_asked_for_at_once(index: Index) -> None:
    many = [of(f"o{n}", "SR", n) for n in range(450)]
    assert counted(index, *many[:250]) == {"SR": 250}
    assert counted(index, *many) == {"SR": 200}
