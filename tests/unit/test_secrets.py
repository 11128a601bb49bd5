"""Passwords are in no output, and nothing unpickles."""

from __future__ import annotations

import ast
import importlib.util
import io
import json
import os
import pickle
import traceback
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import redis
from click.testing import CliRunner

from broker.anomaly.reference_set import ReferenceSet
from broker.cli import main
from broker.config import RedisSettings, Settings, TritonSettings, load_settings
from broker.errors import ConfigurationError

ROOT = Path(__file__).resolve().parents[2]
SECRET = "hush-7f3a"


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("TRIFID_"):
            monkeypatch.delenv(name)


def test_a_secret_may_be_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "secret"
    file.write_text(f"{SECRET}\n")
    toml = tmp_path / "trifid.toml"
    toml.write_text(
        '[kafka]\nsasl_password = "the file of a secret wins"\n'
        'sasl_username = "trifid"\nsecurity_protocol = "SASL_SSL"\n'
    )
    for name in ("KAFKA__SASL_PASSWORD", "REDIS__PASSWORD", "SCHEMA_REGISTRY__PASSWORD", "KAFKA__SSL_KEY_PASSWORD"):
        monkeypatch.setenv(f"TRIFID_{name}_FILE", str(file))
    settings = load_settings(toml)
    assert settings.kafka.client_options()["sasl.password"] == SECRET
    assert settings.kafka.client_options()["ssl.key.password"] == SECRET
    assert settings.kafka.sasl_username == "trifid"
    assert settings.schema_registry.password is not None
    assert settings.schema_registry.password.get_secret_value() == SECRET
    assert SECRET in settings.redis.address()
    assert SECRET not in repr(settings) + settings.model_dump_json()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file"),
        (b"", "is empty"),
        (b"\n", "is empty"),
        (SECRET.encode() * 10_000, "longer than any secret"),
        (SECRET.encode() + b"\xff", "is no text"),
    ],
)
def test_a_file_that_cannot_be_a_secret_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None, reason: str
) -> None:
    file = tmp_path / "secret"
    if content is not None:
        file.write_bytes(content)
    monkeypatch.setenv("TRIFID_KAFKA__SASL_PASSWORD_FILE", str(file))
    with pytest.raises(ConfigurationError, match=reason) as caught:
        load_settings()
    assert "TRIFID_KAFKA__SASL_PASSWORD_FILE" in str(caught.value)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_a_secret_in_a_variable_and_in_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIFID_REDIS__PASSWORD", SECRET)
    monkeypatch.setenv("TRIFID_REDIS__PASSWORD_FILE", str(tmp_path / "secret"))
    with pytest.raises(ConfigurationError, match="are both set"):
        load_settings()


@pytest.mark.parametrize("password", ["plain", "a/b@c#d?e:f%20g h&i=j", "ünï"])
def test_a_password_for_redis_may_hold_anything(tmp_path: Path, password: str) -> None:
    settings = RedisSettings.model_validate(
        {
            "url": "rediss://nobody:before@[::1]:6380/2?socket_timeout=3",
            "username": "tri:fid",
            "password": password,
            "ca_location": tmp_path / "an authority&.pem",
        }
    )
    options = redis.Redis.from_url(settings.address()).connection_pool.connection_kwargs
    assert (options["username"], options["password"]) == ("tri:fid", password)
    assert (options["host"], options["port"], options["db"], options["socket_timeout"]) == ("::1", 6380, 2, 3)
    assert options["ssl_ca_certs"] == str(tmp_path / "an authority&.pem")
    assert urlsplit(settings.address()).scheme == "rediss"


def test_the_address_of_redis_is_the_url_where_nothing_is_added() -> None:
    for url in ("redis://localhost:6379/0", "rediss://user:word@h:1/0", "redis://:word@h", "unix:///run/redis.sock"):
        assert RedisSettings.model_validate({"url": url}).address() == url


def test_files_for_tls_without_tls_are_refused() -> None:
    with pytest.raises(ValueError, match="ca_location given, but url is not rediss://"):
        RedisSettings.model_validate({"ca_location": "ca.pem"})
    with pytest.raises(ValueError, match="root_certificates given, but tls is false"):
        TritonSettings.model_validate({"root_certificates": "ca.pem"})
    with pytest.raises(ValueError, match="give both or neither"):
        TritonSettings.model_validate({"tls": True, "private_key": "key.pem"})


WRONG = {
    "slash in the URL's password": {"TRIFID_REDIS__URL": f"redis://trifid:{SECRET}/x@h:6379/0"},
    "hash in the URL's password": {"TRIFID_REDIS__URL": f"redis://trifid:{SECRET}#x@h:6379/0"},
    "bracket in the URL's password": {"TRIFID_REDIS__URL": f"redis://trifid:{SECRET}[x@h:6379/0"},
    "scheme": {"TRIFID_REDIS__URL": f"http://trifid:{SECRET}@h:6379/0"},
    "port": {"TRIFID_REDIS__URL": f"redis://trifid:{SECRET}@h:99999/0"},
    "JSON of a section": {"TRIFID_KAFKA": f'{{"sasl_password": "{SECRET}"'},
    "section that is none": {"TRIFID_KAFKA": f'["{SECRET}"]'},
    "value beside it": {"TRIFID_KAFKA__SASL_PASSWORD": SECRET, "TRIFID_KAFKA__TOPIC_PARTITIONS": "many"},
    "certificate": {
        "TRIFID_KAFKA__SSL_KEY_PASSWORD": SECRET,
        "TRIFID_KAFKA__SECURITY_PROTOCOL": "SSL",
        "TRIFID_KAFKA__SSL_CA_LOCATION": "/none.pem",
    },
    "mechanism": {
        "TRIFID_KAFKA__SASL_PASSWORD": SECRET,
        "TRIFID_KAFKA__SASL_USERNAME": "trifid",
        "TRIFID_KAFKA__SECURITY_PROTOCOL": "SASL_SSL",
        "TRIFID_KAFKA__SASL_MECHANISM": "NONE",
    },
    "TOML": f'[kafka]\nsasl_password = "{SECRET}',
    "key": f'[kafka]\nsasl_pasword = "{SECRET}"\n',
    "type": f'[kafka]\nsasl_password = ["{SECRET}"]\n',
    "table": f'kafka = "{SECRET}"\n',
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_wrong_settings_are_told_without_the_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, str] | str
) -> None:
    arguments = ["run", "--log-level", "DEBUG"]
    monkeypatch.setenv("TRIFID_METRICS__PORT", "0")
    if isinstance(wrong, str):
        file = tmp_path / "trifid.toml"
        file.write_text(wrong)
        arguments += ["--config", str(file)]
    else:
        for name, value in wrong.items():
            monkeypatch.setenv(name, value)
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2, result.output
    assert result.output.startswith("Error: ")
    assert SECRET not in result.output


def test_help_shows_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIFID_KAFKA__SASL_PASSWORD", SECRET)
    monkeypatch.setenv("TRIFID_REDIS__URL", f"redis://trifid:{SECRET}@h/0")
    for command in ([], ["run"], ["subscribe"], ["replay"], ["catalog", "load"]):
        result = CliRunner().invoke(main, [*command, "--help"])
        assert result.exit_code == 0
        assert SECRET not in result.output


def test_whatever_is_called_a_password_is_kept_secret() -> None:
    for name, section in Settings.model_fields.items():
        for key, field in getattr(type(section.default), "model_fields", {}).items():
            if "password" in key or "secret" in key or "token" in key:
                assert "SecretStr" in str(field.annotation), f"{name}.{key}"


def sources() -> Iterator[tuple[Path, ast.Call | ast.Import | ast.ImportFrom]]:
    for folder in ("broker", "training", "deploy", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call | ast.Import | ast.ImportFrom):
                    yield path, node


UNPICKLING = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}


def test_nothing_unpickles_or_runs_code_that_comes_in() -> None:
    found = []
    for path, node in sources():
        where = f"{path.relative_to(ROOT)}:{node.lineno}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [name.name for name in node.names]
            found += [f"{where}: {module}" for module in modules if module.partition(".")[0] in UNPICKLING]
            continue
        function = ast.unparse(node.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if function in ("np.load", "numpy.load") and given.get("allow_pickle") != "False":
            found.append(f"{where}: {function} without allow_pickle=False")
        if function == "torch.load" and given.get("weights_only") != "True":
            found.append(f"{where}: torch.load without weights_only=True")
        if function in ("eval", "exec", "compile", "os.system", "yaml.load", "yaml.unsafe_load"):
            found.append(f"{where}: {function}")
        if function.endswith(("read_pickle", "to_pickle", "loads_pickle")):
            found.append(f"{where}: {function}")
        if (
            given.get("shell") == "True"
            or given.get("trust_remote_code") == "True"
            or given.get("allow_pickle") == "True"
        ):
            found.append(f"{where}: {ast.unparse(node)}")
    assert not found


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return pytest.fail, ("a pickle was run",)


def test_a_reference_set_that_holds_a_pickle_is_refused() -> None:
    out = io.BytesIO()
    np.savez(out, version=np.array([Bomb()], dtype=object))
    with pytest.raises(ConfigurationError, match="is no reference set"):
        ReferenceSet.from_bytes(out.getvalue(), "here")
    with pytest.raises(ConfigurationError):
        ReferenceSet.from_bytes(pickle.dumps(Bomb()), "here")


def judge(packages: list[dict[str, object]], *, required: bool = False) -> tuple[int, str]:
    spec = importlib.util.spec_from_file_location("audit", ROOT / "deploy" / "security" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    code, message = module.judge(packages, required=required)
    return code, message


def test_an_audit_that_audited_nothing_does_not_count_as_one() -> None:
    """What pip-audit gives on a mirror of PyPI, with the words 'No known vulnerabilities found'."""
    unknown = {"name": "redis", "skip_reason": "Dependency not found on PyPI and could not be audited: redis (8.1.0)"}
    ours = {"name": "trifid", "skip_reason": "distribution marked as editable"}
    fine: dict[str, object] = {"name": "numpy", "version": "2.4.0", "vulns": []}
    bad = json.loads('{"name": "h11", "version": "0.9", "vulns": [{"id": "CVE-1", "fix_versions": ["0.16"]}]}')
    assert judge([unknown, ours])[0] == 0
    assert judge([unknown, ours])[1].startswith("audit skipped")
    assert judge([unknown, ours], required=True)[0] == 1
    assert judge([fine, ours], required=True) == (0, "no known vulnerabilities in 1 of 1 packages")
    assert judge([fine, unknown]) == (0, "no known vulnerabilities in 1 of 2 packages; not audited: redis")
    assert judge([fine, unknown], required=True)[0] == 1
    assert judge([fine, bad]) == (1, "h11 0.9: CVE-1, fixed in 0.16")
