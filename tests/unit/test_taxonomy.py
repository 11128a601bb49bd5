"""Parents, and the numbers of ELAsTiCC's taxonomy."""

from __future__ import annotations

from broker.taxonomy import CLASS_NAMES, CLASSES, ELASTICC_ID, NOT_CLASSIFIED, OTHER, PARENT_CLASSES, PARENT_OF, PARENTS

ELASTICC = {
    100: "Meta/Other", 300: "NotClassified", 2321: "Periodic/Other", 2323: "RR Lyrae", 2324: "Delta Scuti",
    2325: "EB", 2326: "LPV/Mira",
}  # fmt: skip
"""As the notebook taxonomy/taxonomy.ipynb of LSSTDESC/elasticc prints its tree (commit 818ae71)."""


def test_each_class_has_one_parent() -> None:
    assert sorted(name for names in PARENTS.values() for name in names) == sorted(CLASS_NAMES)
    assert PARENTS == {
        "Eclipsing": ("EA", "EB", "EW"), "RRLyrae": ("RRAB", "RRC"), "DeltaScuti": ("HADS", "DSCT"),
        "LongPeriod": ("M", "SR"), "Rotational": ("ROT",),
    }  # fmt: skip
    assert (PARENT_OF["EW"], PARENT_OF["DSCT"], PARENT_OF["SR"]) == ("Eclipsing", "DeltaScuti", "LongPeriod")


def test_names_are_distinct_as_topics_are() -> None:
    names = [*CLASS_NAMES, *PARENTS, NOT_CLASSIFIED.name, OTHER.name, "all", "anomaly"]
    assert len({name.lower() for name in names}) == len(names)


def test_numbers_of_elasticc() -> None:
    named = {name: ELASTICC[number] for name, number in ELASTICC_ID.items()}
    assert named == {
        "EW": "EB", "EA": "EB", "EB": "EB", "Eclipsing": "EB",
        "RRAB": "RR Lyrae", "RRC": "RR Lyrae", "RRLyrae": "RR Lyrae",
        "HADS": "Delta Scuti", "DSCT": "Delta Scuti", "DeltaScuti": "Delta Scuti",
        "M": "LPV/Mira", "SR": "LPV/Mira", "LongPeriod": "LPV/Mira",
        "ROT": "Periodic/Other", "Rotational": "Periodic/Other",
        "Other": "Meta/Other", "NotClassified": "NotClassified",
    }  # fmt: skip
    # A class and its parent are the same to ELAsTiCC, so that sums over parents lose nothing there.
    for parent in PARENT_CLASSES:
        assert {ELASTICC_ID[name] for name in parent.classes} == {parent.elasticc_id}
    assert [each.class_id for each in (*CLASSES, NOT_CLASSIFIED, OTHER)] == list(range(12))
