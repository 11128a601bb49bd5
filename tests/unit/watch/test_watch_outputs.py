"""What lists send to Lasair, SkyPortal and readers of VOEvent and GCN, by those services' own rules."""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

import jsonschema
import lasair
import pytest
import voeventparse

from broker.client import PublishedAnnotation
from broker.database import DELIVERIES, MATCHES
from broker.times import mjd_now
from broker.watch import outputs
from broker.watch.content import Content
from broker.watch.lists import ListError, Terms
from broker.watch.outputs import skyportal
from broker.web.watch_api import shown
from tests.waiting import wait_until
from tests.watch_bench import STAR, Bench, process

TOKEN = "T0K3N-SECRET"
STARS = [
    replace(STAR, alert_id=11, object_id="170032859134952450", ra=359.99999994, dec=-12.5, mjd=61000.25, survey="lsst",
            model_version="2026.11.28.5", anomaly_score=0.125),
    replace(STAR, alert_id=12, object_id="170032859134952450", survey="lsst", class_names=("EA", "RRAB"),
            probabilities=(0.6, 0.4), period=None),
]  # fmt: skip

Asked = tuple[str, str, dict[str, str], bytes]
Rule = Callable[[Asked], tuple[int, Any]]


class Service:
    """Answers by a rule, and keeps what it was asked: method, path, headers, body."""

    def __init__(self, rule: Rule) -> None:
        self.asked: list[Asked] = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                asked = self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body
                service.asked.append(asked)
                status, said = rule(asked)
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps(said).encode())

            do_GET = do_POST = do_PUT = answer  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@contextmanager
def served(rule: Rule) -> Iterator[Service]:
    service = Service(rule)
    thread = threading.Thread(target=service.server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield service
    finally:
        service.server.shutdown()
        service.server.server_close()
        thread.join()


@pytest.fixture
def bench(database: str) -> Iterator[Bench]:
    bench = Bench(database, retry_s=0.05, max_retry_s=0.05, max_attempts=4, public_url="https://trifid.example.org")
    with closing(bench.index):
        yield bench


def deliver(bench: Bench, terms: Terms, annotations: list[PublishedAnnotation]) -> list[str]:
    """Send these for a new list, as `trifid notify` does; how each ended."""
    bench.lists.create("local", "out", terms, Content(names=["a"]))
    bench.add("local", "out", annotations)
    assert bench.box.collect() == len(annotations)
    with process(bench):
        wait_until(lambda: all(row["state"] != "pending" for row in bench.rows(DELIVERIES)))
    return [row["state"] for row in bench.rows(DELIVERIES)]


def lasair_rule(asked: Asked) -> tuple[int, Any]:
    """As the serializer and view of lasair-lsst's ``/api/annotate/`` take and refuse it."""
    method, path, headers, body = asked
    if headers.get("authorization") != f"Token {TOKEN}":
        return 401, {"detail": f"Invalid token: {headers.get('authorization')}"}
    given = parse_qs(body.decode(), keep_blank_values=True, strict_parsing=True)
    form = {name: values[0] for name, values in given.items()}
    longest = {"topic": 255, "classification": 80, "version": 80, "explanation": 1024, "classdict": 4096, "url": 1024}
    wrong = {name: "too long" for name, most in longest.items() if len(form.get(name, "")) > most}
    wrong |= {name: "required" for name in (*longest, "objectId") if name not in form}
    wrong |= {name: "blank" for name in ("topic", "classification", "version", "classdict") if form.get(name) == ""}
    if not re.fullmatch(r"-?\d+", form.get("objectId", "")):
        wrong["objectId"] = "A valid integer is required."
    if (method, path) != ("POST", "/api/annotate/") or wrong:
        return 400, wrong
    json.loads(form["classdict"])
    if form["topic"] != "trifid_rr":
        return 200, {"error": f"Annotator error: topic {form['topic']} does not exist"}
    return 200, {"status": "success", "annotation_topic": "annotations", "message": json.dumps(form)}


def test_lasair_gets_what_its_own_client_sends(bench: Bench) -> None:
    with served(lasair_rule) as service:
        terms = Terms(webhook=f"{service.url}/api", format="lasair", options={"topic": "trifid_rr"}, token=TOKEN)
        assert deliver(bench, terms, STARS) == ["sent", "sent"]
        ours = {parse_qs(asked[3].decode())["classification"][0]: asked for asked in service.asked}
        method, path, headers, body = ours["RRAB"]
        form = {name: values[0] for name, values in parse_qs(body.decode(), keep_blank_values=True).items()}
        values = json.loads(form["classdict"])
        assert (form["version"], values["anomalyScore"], values["period"]) == ("2026.11.28.5", 0.125, 0.5)
        assert values["probabilities"] == {"RRAB": 0.75, "EA": 0.25}
        assert form["url"] == "https://trifid.example.org/object/lsst/170032859134952450"
        assert form["explanation"] == (
            "RRAB with probability 0.75 from light curve (20 detections, period 0.5 d, anomaly score 0.125)"
        )
        client = lasair.lasair_client(TOKEN, endpoint=f"{service.url}/api")
        answer = client.annotate(
            form["topic"], form["objectId"], form["classification"], form["version"], form["explanation"], values,
            form["url"],
        )  # fmt: skip
        assert answer["status"] == "success"
        theirs = service.asked[-1]
    assert (method, path, body) == (theirs[0], theirs[1], theirs[3])
    for name in ("authorization", "content-type"):
        assert headers[name] == theirs[2][name]
    assert len(headers["idempotency-key"]) == 32


@pytest.mark.parametrize(
    ("topic", "token", "object_id", "problem"),
    [
        ("other", TOKEN, "17", "topic other does not exist"),
        ("trifid_rr", "WR0NG", "17", 'answers 401: {"detail": "Invalid token: Token ***"}'),
        ("trifid_rr", TOKEN, "ZTF18abc", 'answers 400: {"objectId": "A valid integer is required."}'),
    ],
)
def test_what_lasair_refuses_is_a_dead_letter_with_its_reason(
    bench: Bench, topic: str, token: str, object_id: str, problem: str
) -> None:
    with served(lasair_rule) as service:
        terms = Terms(webhook=f"{service.url}/api", format="lasair", options={"topic": topic}, token=token)
        assert deliver(bench, terms, [replace(STARS[0], object_id=object_id)]) == ["dead"]
        assert len(service.asked) == 4
        assert len({asked[2]["idempotency-key"] for asked in service.asked}) == 1
    (row,) = bench.rows(DELIVERIES)
    assert problem in row["problem"]
    assert token not in row["problem"]
    assert bench.rows(MATCHES)[0]["payload"] is not None  # it can be sent again


class SkyPortal:
    """The rules of SkyPortal's handlers of sources, annotations and classifications, and what they keep."""

    def __init__(self) -> None:
        self.sources: dict[str, Any] = {}
        self.annotations: list[dict[str, Any]] = []
        self.classifications: list[dict[str, Any]] = []
        self.fails = 0

    def __call__(self, asked: Asked) -> tuple[int, Any]:
        method, path, headers, body = asked
        if headers.get("authorization") != f"token {TOKEN}":
            return 401, {"status": "error", "message": "Credentials malformed"}
        value = json.loads(body) if body else {}
        try:
            return 200, {"status": "success", "data": self._of(method, path, value)}
        except (AssertionError, KeyError, StopIteration) as error:
            return 400, {"status": "error", "message": f"{type(error).__name__}: {error}", "data": {}}

    def _of(self, method: str, path: str, value: Any) -> Any:
        if method != "GET":
            assert all(isinstance(one, int) for one in value["group_ids"])
        if (method, path) == ("POST", "/api/sources"):
            assert re.fullmatch(r"[a-zA-Z0-9_\-;:+.]+", value["id"])
            assert 0.0 <= value["ra"] < 360.0
            assert abs(value["dec"]) <= 90.0
            self.sources[value["id"]] = value
            return {"id": value["id"]}
        if path.startswith("/api/classifications"):
            if self.fails:
                self.fails -= 1
                raise AssertionError("the database is busy")
            assert value["obj_id"] in self.sources
            assert (value["taxonomy_id"], value["classification"] in CLASSES) == (1, True)
            assert 0.0 <= value["probability"] <= 1.0
            return self._keep(method, path, value, self.classifications)
        found = re.fullmatch(r"/api/sources/([0-9A-Za-z\-_.+]+)/(annotations|classifications)(/\d+)?", path)
        assert found
        name, kind = found[1], found[2]
        assert name in self.sources
        if method == "GET":
            return self.annotations if kind == "annotations" else self.classifications
        assert kind == "annotations"
        assert re.match(r"^\w+", value["origin"])
        assert isinstance(value["data"], dict)
        others = {one["origin"] for one in self.annotations}
        assert method == "PUT" or value["origin"] not in others, "Annotation already exists"
        return self._keep(method, path, value, self.annotations)

    def _keep(self, method: str, path: str, value: Any, kept: list[dict[str, Any]]) -> Any:
        if method == "POST":
            kept.append(value | {"id": len(kept) + 7})
            return {"id": kept[-1]["id"]}
        held = next(one for one in kept if one["id"] == int(path.rpartition("/")[2]))
        held.update(value)
        return {}


CLASSES = frozenset(
    {
        "W Ursae Maj", "Semiregular", "Algol", "RRab", "Beta Lyrae", "Rotating", "RRc", "High-Amp", "Mira",
        "Delta Scuti", "RR Lyrae", "Eclipsing", "RS CVn", "RRd", "Low-Amp",
    }
)  # fmt: skip
"""Names in tdtax 0.1.7, SkyPortal's default taxonomy; the package itself would bring a plug-in of pytest."""


def test_our_classes_are_in_skyportals_default_taxonomy() -> None:
    assert set(skyportal.TDTAX.values()) <= CLASSES


def test_skyportal_keeps_one_annotation_and_one_classification_however_often_it_is_told(bench: Bench) -> None:
    portal = SkyPortal()
    portal.fails = 1
    with served(portal) as service:
        options = {"group_ids": [4, 5], "taxonomy_id": 1}
        terms = Terms(webhook=service.url, format="skyportal", options=options, token=TOKEN)
        assert deliver(bench, terms, STARS[:1]) == ["sent"]
        assert bench.rows(DELIVERIES)[0]["attempts"] == 2
        (annotation,), (classification,) = portal.annotations, portal.classifications
        assert annotation["data"]["class"] == "RRAB"
        assert (annotation["data"]["p_EA"], annotation["data"]["period"]) == (0.25, 0.5)
        assert classification["classification"] == "RRab"
        assert classification["probability"] == 0.75
        assert (classification["ml"], classification["vote"], classification["label"]) == (True, False, False)
        bench.add("local", "out", STARS[1:])
        assert bench.box.collect() == 1
        with process(bench):
            wait_until(lambda: [row["state"] for row in bench.rows(DELIVERIES)] == ["sent", "sent"])
    assert list(portal.sources) == ["170032859134952450"]
    (annotation,), (classification,) = portal.annotations, portal.classifications
    assert (annotation["data"]["class"], "period" in annotation["data"]) == ("EA", False)
    assert (classification["classification"], classification["probability"]) == ("Algol", 0.6)
    assert {asked[2]["authorization"] for asked in service.asked} == {f"token {TOKEN}"}


def test_a_source_that_skyportal_cannot_have_is_told(bench: Bench) -> None:
    with served(SkyPortal()) as service:
        terms = Terms(webhook=service.url, format="skyportal", options={"group_ids": [1]}, token=TOKEN)
        assert deliver(bench, terms, [replace(STAR, object_id="a b"), replace(STAR, ra=math.nan)]) == ["dead", "dead"]
        assert service.asked == []
    first, second = (row["problem"] for row in bench.rows(DELIVERIES))
    assert (first, second) == (
        "SkyPortal takes no source of the name 'a b'", "SkyPortal takes no source without a position"
    )  # fmt: skip


def test_a_voevent_is_valid_by_its_schema_and_says_where_and_what(bench: Bench) -> None:
    odd = replace(STARS[0], alert_id=13, object_id='<&"\x01é', ra=math.nan)
    with served(lambda _: (200, {})) as service:
        options = {"authority": "org.example", "role": "test", "error_radius": 3.6}
        terms = Terms(webhook=f"{service.url}/voevent", format="voevent", options=options)
        assert deliver(bench, terms, [STARS[0], odd]) == ["sent", "sent"]
    packets = {}
    for method, path, headers, body in service.asked:
        assert (method, path, headers["content-type"]) == ("POST", "/voevent", "application/xml")
        packet = voeventparse.loads(body)
        voeventparse.assert_valid_as_v2_0(packet)
        packets[packet.attrib["ivorn"]] = packet
    of = {row["object_id"]: row["event"] for row in bench.rows(MATCHES)}
    assert set(packets) == {f"ivo://org.example/trifid#{event}" for event in of.values()}
    packet = packets[f"ivo://org.example/trifid#{of[STARS[0].object_id]}"]
    place = voeventparse.get_event_position(packet)
    assert (place.ra, place.dec, place.err, place.system) == (359.9999999, -12.5, 0.001, "UTC-ICRS-GEO")
    assert voeventparse.get_event_time_as_utc(packet).isoformat() == "2025-11-21T06:00:00+00:00"
    groups = voeventparse.get_grouped_params(packet)
    assert {name: float(one["value"]) for name, one in groups["probabilities"].items()} == {"RRAB": 0.75, "EA": 0.25}
    params = voeventparse.get_toplevel_params(packet)
    assert (params["objectId"]["value"], params["period"]["value"]) == ("170032859134952450", "0.5")
    assert (packet.attrib["role"], packet.Why.Inference.Concept) == ("test", "RRAB")
    assert packet.Why.Inference.attrib["probability"] == "0.750000"
    (nowhere,) = (packet for packet in packets.values() if packet.find("WhereWhen") is None)
    assert voeventparse.get_toplevel_params(nowhere)["objectId"]["value"] == '<&"é'


GCN = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "required": ["alert_datetime", "mission", "classification", "ra", "dec", "ra_dec_error"],
    "additionalProperties": False,
    "properties": {
        "alert_datetime": {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$"},
        "trigger_time": {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$"},
        "alert_tense": {"enum": ["current", "archival", "planned", "injection", "commanded", "test"]},
        "alert_type": {"enum": ["initial", "subsequent", "update", "retraction"]},
        "event_name": {"type": ["string", "array"], "items": {"type": "string"}},
        "id": {"type": ["string", "array"], "items": {"type": "string"}},
        "data_archive_page": {"type": "string"},
        "mission": {"type": "string"},
        "instrument": {"type": "string"},
        "messenger": {"enum": ["EM", "GW", "Neutrino"]},
        "ra": {"type": "number", "minimum": 0, "exclusiveMaximum": 360},
        "dec": {"type": "number", "minimum": -90, "maximum": 90},
        "ra_dec_error": {"type": "number"},
        "classification": {"type": "object", "additionalProperties": {"type": "number", "minimum": 0, "maximum": 1}},
        "additional_info": {"type": "string"},
    },
}
"""Of GCN's core schema the fields that notices have, after its documents, and that there are no others."""


def test_a_notice_has_the_fields_of_gcns_core_schema(bench: Bench) -> None:
    with served(lambda _: (200, {})) as service:
        terms = Terms(webhook=service.url, format="gcn", options={"tense": "test", "error_radius": 3.6}, token=TOKEN)
        assert deliver(bench, terms, STARS[:1]) == ["sent"]
    ((method, path, headers, body),) = service.asked
    assert (method, path, headers["authorization"]) == ("POST", "/", f"Bearer {TOKEN}")
    notice = json.loads(body)
    jsonschema.validate(notice, GCN, cls=jsonschema.Draft202012Validator)
    assert notice["classification"] == {"RRAB": 0.75, "EA": 0.25}
    assert (notice["trigger_time"], notice["ra_dec_error"]) == ("2025-11-21T06:00:00.000000Z", 0.001)
    assert notice["id"] == [bench.rows(MATCHES)[0]["event"], "11"]


def test_a_service_that_does_not_answer_is_not_asked_for_each_match(database: str) -> None:
    bench = Bench(database, retry_s=60.0, max_retry_s=60.0, matches_per_day=100)
    with closing(bench.index), served(lambda _: (503, {})) as busy:
        for name, url in (("gone", "http://127.0.0.1:1/"), ("busy", busy.url)):
            bench.lists.create("local", name, Terms(webhook=url, format="gcn"), Content(names=["a"]))
            bench.add("local", name, [replace(STAR, alert_id=number) for number in range(20)])
        assert bench.box.collect() == 40
        gone, other = (bench.lists.get("local", name)["id"] for name in ("gone", "busy"))
        with process(bench):
            wait_until(lambda: len(busy.asked) == 20)
            wait_until(lambda: sum(row["attempts"] for row in bench.rows(DELIVERIES)) > 20)
        attempts = {key: [r["attempts"] for r in bench.rows(DELIVERIES) if r["watch"] == key] for key in (gone, other)}
        assert attempts[other] == [1] * 20
        assert 1 <= sum(attempts[gone]) <= 2  # of a host two are asked at a time
        assert all(row["due"] > mjd_now() + 50 / 86_400 for row in bench.rows(DELIVERIES) if row["watch"] == gone)


HOOK = "https://example.org/"


@pytest.mark.parametrize(
    ("terms", "problem"),
    [
        (Terms(format="fax", webhook=HOOK), "format 'fax': give slack, lasair, skyportal, voevent, gcn"),
        (Terms(format="lasair"), "format lasair: give the URL of the service as webhook"),
        (Terms(format="lasair", webhook=HOOK, options={"topic": "t"}), "lasair needs a token"),
        (Terms(format="lasair", webhook=HOOK, token="t"), "options of lasair: topic: Field required"),
        (
            Terms(format="skyportal", webhook=HOOK, token="t", options={"group_ids": []}),
            "options of skyportal: group_ids: List should have at least 1 item",
        ),
        (Terms(format="gcn", webhook=HOOK, options={"what": 1}), "options of gcn: what: Extra inputs"),
        (Terms(format="gcn", webhook=HOOK, token="a\r\nHost: b"), "token: it has printable characters"),
        (Terms(webhook=HOOK, token="t"), "options and a token are for formats other than slack"),
        (Terms(format="gcn", email="a@example.org"), "sends no mail"),
    ],
)  # fmt: skip
def test_terms_that_are_refused(bench: Bench, terms: Terms, problem: str) -> None:
    with pytest.raises(ListError, match=re.escape(problem)):
        bench.lists.create("local", "out", terms, Content(names=["a"]))


def test_a_token_is_never_shown_and_goes_to_no_other_url(bench: Bench) -> None:
    url, options = "https://portal.example.org/x", {"group_ids": [1]}
    terms = Terms(webhook=url, format="skyportal", options=options, token=TOKEN)
    bench.lists.create("local", "out", terms, Content(names=["a"]))
    told = shown(bench.lists.get("local", "out"))
    assert TOKEN not in json.dumps(told)
    assert (told["token"], told["format"], told["options"]["group_ids"]) == (True, "skyportal", [1])
    # What is shown may be given back.
    bench.lists.change(
        "local", "out", replace(terms, webhook=told["webhook"], token=None, options=told["options"]), None
    )
    row = bench.lists.get("local", "out")
    assert (row["webhook"], row["token"]) == (url, TOKEN)
    with pytest.raises(ListError, match="skyportal needs a token"):
        bench.lists.change("local", "out", replace(terms, webhook="https://elsewhere.example.org/", token=None), None)
    bench.lists.change("local", "out", Terms(webhook=url), None)
    assert bench.lists.get("local", "out")["token"] is None


def test_what_waited_in_one_format_is_not_sent_in_another(bench: Bench) -> None:
    terms = Terms(webhook="http://127.0.0.1:1/", format="gcn")
    bench.lists.create("local", "out", terms, Content(names=["a"]))
    bench.add("local", "out", STARS)
    assert bench.box.collect() == 2
    bench.box.published(bench.box.unsent(10))
    assert all(row["payload"] for row in bench.rows(MATCHES))
    bench.lists.change("local", "out", Terms(webhook="http://127.0.0.1:1/"), None)
    assert bench.rows(DELIVERIES) == []
    assert [row["payload"] for row in bench.rows(MATCHES)] == [None, None]


def test_every_format_is_in_the_api() -> None:
    from broker.web.watch_api import ChangedList

    named = ChangedList.model_json_schema()["properties"]["format"]["enum"]
    assert named == [outputs.PLAIN, *outputs.FORMATS]
