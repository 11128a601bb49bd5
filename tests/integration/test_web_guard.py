"""Tokens, scopes, rates and sizes: who may ask the web server what, and how much."""

from __future__ import annotations

import gzip
import hashlib
import html
import io
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis
from click.testing import CliRunner
from fastapi.testclient import TestClient
from prometheus_client import REGISTRY
from pydantic import ValidationError

from broker.cli import main
from broker.config import Settings, WebSettings
from broker.embedded.ports import free_port
from broker.embedded.redis import RedisServer
from broker.errors import ConfigurationError
from broker.readiness import metrics_server
from broker.streaming.health import Readiness
from broker.tokens import Token, Tokens
from broker.web.app import application, parts_of
from broker.web.guard import RateLimit
from broker.web.index import Index
from broker.web.services import Services
from tests.integration.web_line import fill, publish, settings_for

URL = "http://web.example"


@pytest.fixture(scope="module")
def settings(server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("guard")
    return settings_for(server.url, folder, require_login=True, requests_per_minute=1000, max_upload_mib=1)


@pytest.fixture(scope="module")
def parts(settings: Settings) -> Iterator[Services]:
    with parts_of(settings, fill(settings, publish(settings, 2, 8)), follow=False) as parts:
        yield parts


@pytest.fixture(scope="module")
def http(parts: Services) -> TestClient:
    return TestClient(application(parts), base_url=URL)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_without_a_token_only_health_is_answered(http: TestClient) -> None:
    for path in ("/api/v1/objects", "/api/v1/status", "/api/v1/admin/tokens", "/metrics"):
        answer = http.get(path)
        assert answer.status_code == 401, path
        assert answer.headers["www-authenticate"] == "Bearer"
    for wrong in ("trifid_wrong", "", "\u00e9"):
        given = {"Authorization": f"Bearer {wrong}".encode()}
        assert http.get("/api/v1/status", headers=given).status_code == 401
    assert http.get("/healthz").text == "ok\n"


def test_scopes_say_what_a_token_may(http: TestClient, parts: Services) -> None:
    read, feedback, admin = (
        parts.tokens.create(name, frozenset(scopes))
        for name, scopes in (("r", {"read"}), ("f", {"read", "feedback"}), ("a", {"admin"}))
    )
    one = http.get("/api/v1/objects", headers=bearer(read)).json()["objects"][0]
    address = f"/api/v1/objects/{one['survey']}/{one['objectId']}"
    said = {"label": "RRAB", "comment": "<b>seen by eye</b>"}
    assert http.post(f"{address}/feedback", json=said, headers=bearer(read)).status_code == 403
    assert http.post(f"{address}/feedback", json=said, headers=bearer(feedback)).status_code == 201
    assert http.post(f"{address}/feedback", json={"label": "Moon"}, headers=bearer(feedback)).status_code == 422
    (shown,) = http.get(address, headers=bearer(read)).json()["feedback"]
    assert (shown["label"], shown["comment"], shown["by"]) == ("RRAB", "<b>seen by eye</b>", "f")
    assert http.get("/api/v1/admin/tokens", headers=bearer(read)).status_code == 403
    new = {"name": "made", "scopes": ["read"]}
    made = http.post("/api/v1/admin/tokens", json=new, headers=bearer(admin)).json()["token"]
    assert http.post("/api/v1/admin/tokens", json=new, headers=bearer(admin)).status_code == 409
    wrong = {"name": "a/b", "scopes": ["read"]}
    assert http.post("/api/v1/admin/tokens", json=wrong, headers=bearer(admin)).status_code == 422
    assert http.get("/api/v1/status", headers=bearer(made)).status_code == 200
    names = [t["name"] for t in http.get("/api/v1/admin/tokens", headers=bearer(admin)).json()["tokens"]]
    assert names == ["a", "f", "made", "r"]
    assert http.delete("/api/v1/admin/tokens/made", headers=bearer(admin)).status_code == 204
    assert http.get("/api/v1/status", headers=bearer(made)).status_code == 401


def test_no_token_is_in_the_database_and_expired_ones_are_refused(parts: Services, settings: Settings) -> None:
    token = parts.tokens.create("short", frozenset({"read"}), days=1e-9)
    assert parts.tokens.find(token) is None
    path = Path(settings.web.database.get_secret_value().removeprefix("sqlite:///"))
    stored = b"".join(p.read_bytes() for p in path.parent.glob("web.sqlite*"))
    assert b"short" in stored
    assert token.encode() not in stored


def test_a_client_that_asks_too_often_is_told_when_to_come_back() -> None:
    rate = RateLimit(60)
    assert [rate.wait("a") for _ in range(60)] == [0.0] * 60
    assert 0.0 < rate.wait("a") <= 1.0
    assert rate.wait("b") == 0.0


def test_requests_beyond_the_rate_are_429(settings: Settings, parts: Services) -> None:
    few = settings.model_copy(
        update={"web": settings.web.model_copy(update={"requests_per_minute": 3, "require_login": False})}
    )
    with parts_of(few, parts.index, follow=False) as limited:
        http = TestClient(application(limited), base_url="http://localhost")
        answers = [http.get("/api/v1/classes") for _ in range(4)]
    assert [a.status_code for a in answers] == [200, 200, 200, 429]
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 20


def test_whoever_tries_tokens_does_not_reach_the_database(
    settings: Settings, parts: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = settings.model_copy(update={"web": settings.web.model_copy(update={"requests_per_minute": 3})})
    with parts_of(few, parts.index, follow=False) as limited:
        http, good = TestClient(application(limited)), limited.tokens.create("patient", frozenset({"read"}))
        assert http.get("/api/v1/classes", headers=bearer(good)).status_code == 200
        asked: list[str] = []
        find = Tokens.find

        def noted(tokens: Tokens, token: str) -> Token | None:
            asked.append(token)
            return find(tokens, token)

        monkeypatch.setattr(Tokens, "find", noted)
        answers = [http.get("/api/v1/classes", headers=bearer(f"wrong-{n}")).status_code for n in range(6)]
        assert answers == [401, 401, 401, 429, 429, 429]
        assert asked == ["wrong-0", "wrong-1", "wrong-2"]
        # Another's good token from the same address is not kept out by it.
        assert http.get("/api/v1/classes", headers=bearer(good)).status_code == 200


def test_behind_a_trusted_proxy_each_client_has_its_own_rate(settings: Settings, parts: Services) -> None:
    def answers(trusted: tuple[str, ...]) -> list[int]:
        web = settings.web.model_copy(
            update={"requests_per_minute": 1, "require_login": None, "trusted_proxies": trusted}
        )
        with parts_of(settings.model_copy(update={"web": web}), parts.index, follow=False) as limited:
            http = TestClient(application(limited), base_url="http://localhost", client=("10.1.2.3", 50_000))
            given = [{"X-Forwarded-For": address} for address in ("192.0.2.1", "192.0.2.2", "192.0.2.1")]
            return [http.get("/api/v1/classes", headers=headers).status_code for headers in given]

    assert answers(("10.0.0.0/8",)) == [200, 200, 429]
    assert answers(("10.9.0.0/16",)) == [200, 429, 429]  # by somebody else the header is made up
    assert answers(()) == [200, 429, 429]
    with pytest.raises(ValidationError, match="does not appear to be an IPv4 or IPv6 network"):
        WebSettings(trusted_proxies=("*",))


def test_after_the_login_one_is_where_one_wanted_to_be(http: TestClient, parts: Services) -> None:
    for method, path, page in (
        ("GET", "/?class=RRAB&min_probability=0.9", "/?class=RRAB&min_probability=0.9"),
        ("GET", "/object/ztf/a%26b%3Fc", "/object/ztf/a%26b%3Fc"),
        ("POST", "/object/ztf/ZTF18aaaaaaa/feedback", "/object/ztf/ZTF18aaaaaaa"),
        ("POST", "/classify", "/classify"),
    ):
        sent = {"data": {"label": "RRAB", "kind": "lightcurve"}} if method == "POST" else {}
        answer = http.request(method, path, follow_redirects=False, **sent)
        assert answer.status_code == 303, answer.text
        where = answer.headers["location"]
        assert where.startswith("/login?next=")
        assert f'value="{html.escape(page)}"' in http.get(where).text
    token = parts.tokens.create("visitor", frozenset({"read"}))
    form = {"token": token, "next": "/?class=RRAB&min_probability=0.9"}
    done = http.post("/login", data=form, follow_redirects=False)
    assert done.headers["location"] == "/?class=RRAB&min_probability=0.9"
    http.cookies.clear()


def test_without_a_token_no_body_is_read(http: TestClient) -> None:
    given: list[int] = []

    def chunks() -> Iterator[bytes]:
        for _ in range(8):
            given.append(65_536)
            yield b"x" * 65_536

    form = {"Content-Type": "multipart/form-data; boundary=x", "Authorization": "Bearer wrong"}
    read: list[int] = []
    app = http.app

    async def noting(scope: Any, receive: Any, send: Any) -> None:
        async def noted() -> Any:
            message = await receive()
            read.append(len(message.get("body", b"")))
            return message

        await app(scope, noted, send)

    answer = TestClient(noting, base_url=URL).post("/api/v1/classify/lightcurve", content=chunks(), headers=form)
    assert answer.status_code == 401
    assert sum(read) == 0
    assert http.post("/classify", data={"kind": "x"}, follow_redirects=False).status_code == 303


def test_zero_bytes_and_names_that_no_address_has_are_refused(http: TestClient, parts: Services) -> None:
    token = bearer(parts.tokens.create("zero", frozenset({"read", "feedback"})))
    one = http.get("/api/v1/objects", headers=token).json()["objects"][0]
    said = {"label": "RRAB", "comment": "a\0b"}
    address = f"/api/v1/objects/{one['survey']}/{one['objectId']}"
    assert http.post(f"{address}/feedback", json=said, headers=token).status_code == 422
    assert http.get("/api/v1/objects?survey=a%00", headers=token).status_code == 422
    assert http.get("/api/v1/objects/", headers=token, follow_redirects=False).status_code == 404
    for name in ("a/b", ".."):
        with pytest.raises(ConfigurationError, match="no / among them"):
            parts.tokens.create(name, frozenset({"read"}))


def test_a_signal_ends_the_server_and_what_it_has_open_is_closed(tmp_path: Path) -> None:
    port = free_port()
    config = tmp_path / "trifid.toml"
    database = f"sqlite:///{tmp_path / 'web.sqlite'}"
    config.write_text(
        f'[web]\nport = {port}\ndatabase = "{database}"\n[kafka]\nbootstrap_servers = "127.0.0.1:1"\n'
        '[redis]\nurl = "redis://127.0.0.1:1/0"\n'
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        code = (
            "from broker.web.follow import Follower\nimport sys\nfrom broker.cli import main\nend = Follower.__exit__\n"
        )
        code += "Follower.__exit__ = lambda *a: (end(*a), print('closed', flush=True))\n"
        code += "main(['web', '--config', sys.argv[1]])"
        command = [sys.executable, "-c", code, str(config)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            while process.poll() is None:
                with suppress(URLError), urlopen(f"http://127.0.0.1:{port}/healthz", timeout=60) as answer:
                    assert answer.status == 200
                    break
                time.sleep(0.1)
            process.send_signal(number)
            out, error = process.communicate(timeout=300)
        assert (process.returncode, out) == (0, "closed\n"), error


def test_without_tokens_no_other_name_is_served(settings: Settings, parts: Services) -> None:
    open_ = settings.model_copy(update={"web": settings.web.model_copy(update={"require_login": None})})
    with parts_of(open_, parts.index, follow=False) as local:
        app = application(local)
        assert TestClient(app, base_url="http://localhost:8080").get("/api/v1/status").status_code == 200
        answer = TestClient(app, base_url="http://evil.example").get("/api/v1/status")
        assert answer.status_code == 403
        post = {"json": {"label": "M"}, "headers": {"Origin": "http://evil.example"}}
        http = TestClient(app, base_url="http://localhost:8080")
        assert http.post("/api/v1/objects/ztf/x/feedback", **post).status_code == 403


@pytest.mark.parametrize(
    ("address", "required"), [("127.0.0.1", False), ("localhost", False), ("::1", False), ("0.0.0.0", True)]
)
def test_tokens_are_required_beyond_this_machine(address: str, required: bool) -> None:
    assert WebSettings(address=address).tokens_required is required


def test_nobody_is_an_administrator_without_a_token_from_another_machine(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="could give feedback and make tokens"):
        WebSettings(address="0.0.0.0", require_login=False)
    assert WebSettings(address="127.0.0.1", require_login=False).tokens_required is False
    config = tmp_path / "trifid.toml"
    config.write_text(f'[web]\nrequire_login = false\ndatabase = "sqlite:///{tmp_path / "w.sqlite"}"\n')
    done = CliRunner().invoke(main, ["web", "--config", str(config), "--address", "0.0.0.0"])
    assert done.exit_code == 2
    assert "could give feedback and make tokens" in done.output


def _packed(table: pa.Table) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd")
    return out.getvalue()


def _bombs() -> Iterator[tuple[str, bytes, str]]:
    """Small files that hold very much, and what is said of each."""
    yield "zeros.gz", gzip.compress(b"PAR1" + bytes(300 << 20), 1), "more than 268,435,456 bytes when decompressed"
    rows = 3_000_000
    columns = {"time": np.zeros(rows), "mag": np.zeros(rows), "magerr": np.zeros(rows)}
    yield "rows.parquet", _packed(pa.table(columns)), "3,000,000 rows; 2,000,000 are the most here"
    name = pa.DictionaryArray.from_arrays(pa.array(np.zeros(100_000, np.int32)), pa.array(["x" * 1_000_000]))
    few = {key: value[:100_000] for key, value in columns.items()}
    yield "names.parquet", _packed(pa.table({"id": name, **few})), "takes more than 1,024 MiB of memory"
    points = "".join(f"{n % 3},{n / 100},14.{n % 90 + 10},0.01,{'grizy'[n % 5]}\n" for n in range(30))
    yield "name.csv", f"id,mjd,mag,magerr,band\n{'y' * 300}{points}".encode(), "more than 256 characters"


def test_a_small_file_that_holds_very_much_is_refused_and_the_server_goes_on(settings: Settings) -> None:
    web = settings.web.model_copy(update={"require_login": None, "max_upload_mib": 4})
    free = settings.model_copy(update={"web": web})
    index = Index(web.database.get_secret_value())
    with parts_of(free, index, follow=False) as parts:
        http = TestClient(application(parts), base_url="http://localhost")
        for name, content, reason in _bombs():
            assert len(content) < 4 << 20
            answer = http.post("/api/v1/classify/lightcurve", files={"file": (name, content)})
            assert answer.status_code == 422, answer.text
            assert answer.json()["detail"].startswith(f"{name}: ")
            assert reason in answer.json()["detail"]
        assert http.get("/api/v1/status").status_code == 200
    index.close()


def test_of_many_objects_only_the_first_hundred_are_classified(
    parts: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [f"star{n},{58000 + 1.7 * k},{14 + 0.1 * k},0.01,g" for n in range(150) for k in range(3)]
    asked: list[int] = []
    with parts.model._loaded() as pipeline:
        annotate = pipeline.annotate_and_embed

    def counted(received: Any, states: Any) -> Any:
        asked.append(len(states))
        return annotate(received, states)

    monkeypatch.setattr(pipeline, "annotate_and_embed", counted)
    found = parts.model.light_curves("many.csv", ("id,mjd,mag,magerr,band\n" + "\n".join(rows)).encode())
    assert sum(asked) == len(found["annotations"]) == 100
    assert found["remarks"][-1] == "only the first 100 objects of the table were classified"


def test_what_is_too_large_is_refused_before_it_is_read(http: TestClient, parts: Services) -> None:
    token = bearer(parts.tokens.create("large", frozenset({"read"})))
    big = {"file": ("big.csv", b"x" * (1 << 20), "text/csv")}
    answer = http.post("/api/v1/classify/lightcurve", files=big, headers=token)
    assert answer.status_code == 413
    start = b'--x\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
    chunks = (b"x" * 65_536 if n else start for n in range(20))  # without a length
    form = token | {"Content-Type": "multipart/form-data; boundary=x"}
    assert http.post("/api/v1/classify/lightcurve", content=chunks, headers=form).status_code == 413
    assert http.get("/api/v1/objects?survey=" + "z" * 5000, headers=token).status_code == 414


def test_uploads_are_classified_or_refused_with_the_reason(http: TestClient, parts: Services) -> None:
    token = bearer(parts.tokens.create("up", frozenset({"read"})))
    # A sine of 0.31 days' period at times that are no multiple of anything, as ASAS-SN writes light curves.
    times = 2459000.0 + np.cumsum(1.0 + np.random.default_rng(1).random(60))
    rows = [f"{t:.5f},{14 + 0.4 * np.sin(2 * np.pi * t / 0.31):.4f},0.01,V" for t in times]
    table = "HJD,mag,mag_err,Filter\n" + "\n".join(rows) + "\n"
    found = http.post("/api/v1/classify/lightcurve", files={"file": ("my star.csv", table)}, headers=token).json()
    (record,) = found["annotations"]
    assert record["survey"] == "table"
    assert record["detections"] == 60
    assert record["photometricPeriod"] == pytest.approx(0.31, rel=1e-3)
    assert sum(c["probability"] for c in record["classifications"]) == pytest.approx(1.0)
    for name, content in (("../../etc/passwd.csv", b"a,b\n1,2\n"), ("x.fits", b"SIMPLE  = nonsense"), ("", b"\0\1")):
        for kind in ("lightcurve", "spectrum"):
            answer = http.post(f"/api/v1/classify/{kind}", files={"file": (name or "e", content)}, headers=token)
            assert answer.status_code == 422, answer.text
            assert "/tmp" not in answer.text
            assert not re.search(r"upload\.|etc/", answer.text)
    spectrum = "wavelength,flux\n" + "\n".join(f"{w},{1 + w / 1e4:.4f}" for w in range(3700, 9100, 4))
    found = http.post("/api/v1/classify/spectrum", files={"file": ("s.csv", spectrum)}, headers=token).json()
    assert found["annotations"][0]["modalities"] == ["spectrum"]
    assert found["spectra"][0]["wavelength_max"] == pytest.approx(9096.0)


def test_answers_have_security_headers_and_are_measured(http: TestClient) -> None:
    before = REGISTRY.get_sample_value("trifid_web_request_seconds_count", {"route": "/healthz", "status": "2xx"}) or 0
    headers = http.get("/healthz").headers
    after = REGISTRY.get_sample_value("trifid_web_request_seconds_count", {"route": "/healthz", "status": "2xx"})
    assert after == before + 1
    assert "default-src 'none'" in headers["content-security-policy"]
    assert headers["x-frame-options"] == "DENY"
    assert headers["cache-control"] == "no-store"
    assert "server" not in headers
    http.get("/x" * 50)
    assert REGISTRY.get_sample_value("trifid_web_request_seconds_count", {"route": "none", "status": "4xx"})


def test_prometheus_has_the_metrics_at_a_port_of_their_own() -> None:
    port = free_port()
    with metrics_server("127.0.0.1", port, Readiness(5.0)):
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            told = answer.read().decode()
        with pytest.raises(OSError, match="in use"), metrics_server("127.0.0.1", port, Readiness(5.0)):
            pass
    assert "# TYPE trifid_web_request_seconds histogram" in told
    # Nothing by which an alarm would take this server for a worker that is not ready, or makes its batches smaller.
    assert "trifid_ready" not in told
    assert "trifid_batch_limit_messages" not in told
    assert REGISTRY.get_sample_value("trifid_ready") is not None
    with pytest.raises(URLError, match="refused"):
        urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10)


def test_tokens_from_the_command_line(tmp_path: Path) -> None:
    config = tmp_path / "trifid.toml"
    config.write_text(f'[web]\ndatabase = "sqlite:///{tmp_path / "tokens.sqlite"}"\n')

    def run(*arguments: str, code: int = 0) -> str:
        done = CliRunner().invoke(main, ["web", "--config", str(config), "token", *arguments])
        assert done.exit_code == code, done.output
        return done.output

    assert run("create", "me", "--scope", "read", "--scope", "admin").startswith("trifid_")
    assert run("list") == "me  admin read  never expires\n"
    assert "already" in run("create", "me", code=2)
    run("revoke", "me")
    assert "no token" in run("revoke", "me", code=1)


def test_the_log_has_no_secret_and_the_format_that_was_asked_for(tmp_path: Path) -> None:
    port, url = free_port(), f"sqlite:///{tmp_path / 'a-secret.sqlite'}"
    with socket.create_server(("127.0.0.1", port)):  # so that the server cannot begin, and ends
        config = tmp_path / "trifid.toml"
        config.write_text(f'[web]\nport = {port}\ndatabase = "{url}"\n[kafka]\nbootstrap_servers = "127.0.0.1:1"\n')
        code = (
            "import logging, sys\n"
            "from broker.cli import main, logs\n"
            "hide = logs.hide\n"
            "def spy(secrets):\n"
            "    hide(secrets)\n"
            "    logging.getLogger('test').error('cannot use %s', sys.argv[2])\n"
            "logs.hide = spy\n"
            "main(['web', '--config', sys.argv[1], '--log-format', 'json', '--log-level', 'ERROR'])"
        )
        command = [sys.executable, "-c", code, str(config), url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    # Beside these there is what a service says whatever the levels, such as that there is no token yet.
    errors = [line for line in lines if (line["level"], line["logger"]) != ("INFO", "broker")]
    assert {line["level"] for line in errors} == {"ERROR"}
    assert (errors[0]["logger"], errors[0]["message"]) == ("test", "cannot use ***")
    assert url not in done.stdout + done.stderr
    assert done.returncode != 0


def test_redis_is_only_read_and_the_example_user_may_do_so(tmp_path: Path) -> None:
    acl = (Path(__file__).parents[2] / "deploy" / "security" / "redis-users.acl").read_text()
    for place in ("ADMIN", "TRIFID", "OPERATOR", "WEB"):
        acl = acl.replace(f"@{place}_SHA256@", hashlib.sha256(place.encode()).hexdigest())
    (tmp_path / "users.acl").write_text(acl)

    def keys() -> dict[bytes, bytes]:
        with closing(redis.Redis(port=server.port, username="admin", password="ADMIN")) as client:
            return {key: client.dump(key) for key in client.scan_iter()}

    with RedisServer(acl_file=tmp_path / "users.acl", login=("admin", "ADMIN")) as server:
        settings = settings_for(f"redis://trifid:TRIFID@127.0.0.1:{server.port}/0", tmp_path)
        reader = settings_for(f"redis://trifid-web:WEB@127.0.0.1:{server.port}/0", tmp_path)
        index = Index(settings.web.database.get_secret_value())
        lost = REGISTRY.get_sample_value("trifid_state_lost_total") or 0.0
        with parts_of(reader, index, follow=False) as parts:
            http = TestClient(application(parts), base_url="http://localhost")
            assert http.get("/api/v1/status").json()["redis"] == "ok"
            assert keys() == {}
            annotations = publish(settings, 3, 6)
            index.add(annotations)
            stored = keys()
            name = annotations[0].object_id
            found = http.get(f"/api/v1/objects/ztf/{name}").json()
            assert found["problems"] == []
            assert len(found["lightCurve"]["mjd"]) >= 6
            parts.store.check()
            assert keys() == stored
            # Of an object that expired, its entry in the cell is left for the workers to delete.
            with closing(redis.Redis(port=server.port, username="admin", password="ADMIN")) as client:
                client.delete(*(key for key in stored if key.endswith(f"ztf:{name}:lc".encode())))
            left = keys()
            assert len(left) == len(stored) - 1
            assert http.get(f"/api/v1/objects/ztf/{name}/lightcurve").status_code == 404
            assert keys() == left
            with closing(redis.Redis(port=server.port, username="admin", password="ADMIN")) as client:
                client.flushall()
            parts.store.check()
            assert keys() == {}
        index.close()
    assert (REGISTRY.get_sample_value("trifid_state_lost_total") or 0.0) == lost
