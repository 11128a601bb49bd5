"""Surveys of an operator's own: read as ours, and named where they are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.errors import ConfigurationError
from broker.surveys import MODULES, SURVEYS, Decoder, load_surveys
from tests.unit.surveys.test_decoder import PAYLOAD, alerts_of, container

MODULE = """
from broker.records import Alert, LightCurve
from broker.avro.layout import Column, RowTable
from broker.avro.machine import Kind

class Mine:
    name = "mine"
    tables = {"record": RowTable(("",), {"x": Column(Kind.NUMBER, ("x",))})}

    def recognises(self, schema_name, fields):
        return schema_name == "mine.alert"

    def to_alerts(self, records):
        x = records.tables["record"].numbers("x").tolist()
        if 13.0 in x:
            raise RuntimeError("thirteen")
        return [
            Alert("mine", int(value), int(value), str(value), 0.0, 0.0, 60000.0, "ztf:g", LightCurve.empty(), "1")
            for value in x
        ]

SURVEY = Mine()
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "trifid_test_own_survey.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "trifid_test_own_survey"


def own(x: float) -> bytes:
    fields_of = [{"name": "x", "type": "double"}, {"name": "diaSource", "type": "int"}]
    schema = {"type": "record", "name": "mine.alert", "fields": fields_of}
    return container(schema, [{"x": x, "diaSource": 0}])


def test_a_survey_of_ones_own_and_errors_that_nobody_thought_of(own_module: str) -> None:
    decoder = Decoder(surveys=[*MODULES, own_module])
    results = decoder.decode_batch([own(1.0), PAYLOAD, own(13.0), own(2.0)])
    assert [alerts_of(results[k])[0].survey for k in (0, 1, 3)] == ["mine", "ztf", "mine"]
    assert str(results[2]) == "the packet cannot be read: RuntimeError: thirteen"


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["no.such.module"], "'no.such.module'.*ModuleNotFoundError"),
        (["broker.avro.wire"], "'broker.avro.wire'.*SURVEY"),
        (["broker.surveys.ztf", "broker.surveys.ztf"], "there is a survey 'ztf' already"),
        ([], "no survey module"),
    ],
)
def test_a_module_that_is_no_surveys_is_named(names: list[str], reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        load_surveys(names)


def test_tables_of_ones_own_that_cannot_be_filled_are_named(own_module: str, tmp_path: Path) -> None:
    module = tmp_path / f"{own_module}.py"
    module.write_text(MODULE.replace('RowTable(("",)', 'RowTable(("y",)').replace('"mine"', '"other"', 1))
    module.rename(tmp_path / "trifid_test_other_survey.py")
    with pytest.raises(ConfigurationError, match="survey 'other': the first table"):
        Decoder(surveys=["trifid_test_other_survey"])


def test_the_surveys() -> None:
    assert SURVEYS == ("ztf", "lsst", "elasticc")
    assert [survey.name for survey in load_surveys(MODULES)] == list(SURVEYS)
