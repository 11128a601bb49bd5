"""Pages of the documentation site that are made from the code: settings, schemas, commands, metrics, HTTP API."""

from __future__ import annotations

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final

import click
from prometheus_client.metrics import MetricWrapperBase
from pydantic import BaseModel, SecretStr
from pydantic_core import PydanticUndefined

import broker.metrics
from broker.cli import main
from broker.config import Settings
from broker.web.app import routes

ROOT: Final = Path(__file__).resolve().parents[2]
_PAGE: Final = re.compile(r"\bdocs/(\w+)\.md\b")


def prose(text: str) -> str:
    """A docstring as Markdown: code in single backticks, names of pages as links from reference/."""
    text = re.sub(r"``(.+?)``", r"`\1`", " ".join(text.split()))
    return _PAGE.sub(r"[\1](../\1.md)", text)


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """A table in Markdown; bars within cells are escaped."""
    cells = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    return [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {' | '.join(row)} |" for row in cells), ""]


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting, as the reference shows it."""

    name: str
    """With its section: ``kafka.group_id``."""
    kind: str
    default: str
    text: str

    @property
    def variable(self) -> str:
        """The variable of the environment that gives it."""
        return f"TRIFID_{self.name.replace('.', '__').upper()}"


def attribute_texts(cls: type) -> dict[str, str]:
    """The texts below the fields of a class and of those that it comes from, in this project; "" where there is none.

    Python keeps none of them, so that the source is read.
    """
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not base.__module__.startswith("broker."):
            continue
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(definition, ast.ClassDef)
        for field, after in zip(definition.body, [*definition.body[1:], None], strict=True):
            if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
                continue
            told = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            found[field.target.id] = str(after.value.value) if told else ""  # type: ignore[union-attr]
    return found


def settings(model: type[BaseModel] = Settings, prefix: str = "") -> Iterator[Setting]:
    """All settings of a tree, in its order."""
    texts = attribute_texts(model)
    for name, field in model.model_fields.items():
        if isinstance(field.default, BaseModel):
            yield from settings(type(field.default), f"{prefix}{name}.")
            continue
        kind = _kind(inspect.get_annotations(_owner(model, name), eval_str=False)[name])
        yield Setting(prefix + name, kind, _default(field.default), texts[name])


def _owner(model: type, name: str) -> type:
    return next(base for base in model.__mro__ if name in vars(base).get("__annotations__", {}))


def _kind(annotation: Any) -> str:
    words = {
        "Names": "list of texts", "Seconds": "seconds", "Int32": "integer", "PositiveInt": "integer", "str": "text",
        "int": "integer", "float": "number", "bool": "true or false", "Path": "path", "SecretStr": "text, a secret",
    }  # fmt: skip
    text = str(annotation).removesuffix(" | None")
    if text.startswith("Literal["):
        return " or ".join(f"`{value}`" for value in ast.literal_eval(f"[{text[8:-1]}]"))
    return words.get(text, "table" if text.startswith("dict") else text)


def _default(value: Any) -> str:
    if value is PydanticUndefined:
        return "see text"
    if value is None:
        return "none"
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, Path):
        value = f"{value.name}/"  # where this is installed tells the reader nothing
    if isinstance(value, Enum):
        value = value.value
    return f"`{json.dumps(list(value) if isinstance(value, tuple) else value)}`"


def settings_page() -> str:
    """All settings by section."""
    lines = [
        "# Settings",
        "",
        "One typed tree, from a TOML file (`--config`, or the file that `TRIFID_CONFIG` names) and from variables of "
        "the environment, which win. A secret may also come from a file that a variable with `_FILE` at its end names "
        "([security](../security.md)). A key that is no setting is refused.",
        "",
    ]
    section = ""
    for one in settings():
        head = one.name.rpartition(".")[0]
        if head != section:
            section = head
            told = type(Settings.model_fields[head].default).__doc__ or ""
            lines += [f"## {head}", "", prose(told), ""]
        lines += [
            f"### {one.name}",
            "",
            f"{one.kind}; default {one.default}. `{one.variable}`",
            "",
            prose(one.text),
            "",
        ]
    return "\n".join(lines)


def fields(record: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Path, type and text of all fields of an Avro record, those of the records within it behind theirs."""
    for field in record["fields"]:
        yield prefix + field["name"], avro_type(field["type"]), field.get("doc", "")
        for inner in _records(field["type"]):
            yield from fields(inner, f"{prefix}{field['name']}.")


def _records(kind: Any) -> Iterator[dict[str, Any]]:
    for one in kind if isinstance(kind, list) else [kind]:
        if isinstance(one, dict):
            if one["type"] == "record":
                yield one
            yield from _records(one.get("items") or one.get("values") or [])


def avro_type(kind: Any) -> str:
    """An Avro type in words."""
    if isinstance(kind, list):
        words = [avro_type(one) for one in kind if one != "null"]
        return " or ".join(words) + (", or null" if "null" in kind else "")
    if isinstance(kind, str):
        return kind
    if kind["type"] == "array":
        return f"array of {avro_type(kind['items'])}"
    if kind["type"] == "map":
        return f"map to {avro_type(kind['values'])}"
    return str(kind.get("logicalType") or (kind["name"] if kind["type"] in ("record", "enum") else kind["type"]))


def schema_page(title: str, path: str, more: str) -> str:
    """The fields of an Avro file."""
    record = json.loads((ROOT / path).read_text())
    rows = [(f"`{name}`", kind, prose(told)) for name, kind, told in fields(record)]
    head = [f"# {title}", "", prose(record.get("doc", "")), "", f"`{path}`; {more}", ""]
    return "\n".join([*head, *table(("field", "type", "meaning"), rows)])


def commands(command: click.Command = main, name: str = "trifid") -> Iterator[tuple[str, click.Command]]:
    """Every command by its full name, groups before what is in them."""
    yield name, command
    if isinstance(command, click.Group):
        for below in sorted(command.commands):
            yield from commands(command.commands[below], f"{name} {below}")


def commands_page() -> str:
    """What ``--help`` says of each command."""
    lines = ["# Commands", "", "What `trifid COMMAND --help` prints.", ""]
    for name, command in commands():
        with click.Context(command, info_name=name, max_content_width=100, terminal_width=100) as context:
            told = command.get_help(context)
        lines += [f"{'##' if name.count(' ') < 2 else '###'} {name}", "", "```text", told, "```", ""]
    return "\n".join(lines)


def metrics() -> Iterator[MetricWrapperBase]:
    """All metrics of the service."""
    yield from (one for one in vars(broker.metrics).values() if isinstance(one, MetricWrapperBase))


def metrics_page() -> str:
    """Name, kind, labels and meaning of each metric."""
    rows = []
    for one in metrics():
        name = f"{one._name}_total" if one._type == "counter" else one._name
        labels = ", ".join(f"`{label}`" for label in one._labelnames)
        rows.append((f"`{name}`", str(one._type), labels, prose(one._documentation)))
    head = ["# Metrics", "", "What `:8000/metrics` has; alarms on them are in the [runbook](../runbook.md).", ""]
    return "\n".join([*head, *table(("metric", "kind", "labels", "meaning"), rows)])


def openapi() -> dict[str, Any]:
    """The HTTP API as a running ``trifid web`` describes it at ``/openapi.json``."""
    return routes().openapi()


def api_page() -> str:
    """Routes of the HTTP API with their parameters."""
    described = openapi()
    lines = [
        "# HTTP API",
        "",
        f"{prose(described['info']['description'])} Errors, tokens and rates: [page and API](../web.md). The same for "
        "programs: [openapi.json](openapi.json), or `/openapi.json` of a running server.",
        "",
    ]
    for path, methods in described["paths"].items():
        for method, route in methods.items():
            told = route.get("description") or route.get("summary", "")
            lines += [f"## {method.upper()} {path}", "", prose(told), ""]
            given = [
                (f"`{one['name']}`", one["in"], _schema(one["schema"]), prose(one.get("description", "")))
                for one in route.get("parameters", [])
            ]
            lines += table(("parameter", "in", "type", "meaning"), given) if given else []
            for kind, body in route.get("requestBody", {}).get("content", {}).items():
                lines += [f"Body: `{kind}`, {_schema(body['schema'])}.", ""]
    lines += ["## Bodies", ""]
    for name, schema in described["components"]["schemas"].items():
        if "properties" in schema and not name.startswith(("HTTPValidation", "Validation")):
            rows = [
                (f"`{key}`", _schema(one), prose(one.get("description", "")))
                for key, one in schema["properties"].items()
            ]
            lines += [f"### {name}", "", prose(schema.get("description", "")), ""]
            lines += table(("field", "type", "meaning"), rows)
    return "\n".join(lines)


def _schema(schema: dict[str, Any]) -> str:
    """A JSON schema in a few words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_schema(one) for one in schema["anyOf"] if one.get("type") != "null"))
    if "enum" in schema:
        return ", ".join(f"`{one}`" for one in schema["enum"])
    if schema.get("type") == "array":
        return f"array of {_schema(schema['items'])}"
    bounds = [
        f"{word} {schema[key]}"
        for key, word in (("minimum", "from"), ("maximum", "to"), ("maxLength", "up to"))
        if key in schema
    ]
    default = f"; `{json.dumps(schema['default'])}`" if schema.get("default") is not None else ""
    return " ".join([str(schema.get("type", schema.get("const", "any"))), *bounds]) + default


def client_page() -> str:
    """What ``broker.client`` exports; mkdocstrings fills in the rest."""
    how = "`pip install trifid`; how it is used: [annotations](../annotation.md#reading-them-in-python)."
    return f"# Python client\n\n{how}\n\n::: broker.client\n"


def pages() -> dict[str, str]:
    """All of these pages by their path in the site."""
    return {
        "reference/settings.md": settings_page(),
        "reference/annotation-schema.md": schema_page(
            "Annotation schema", "broker/publish/annotation.avsc", "how to read it: [annotation](../annotation.md)."
        ),
        "reference/spectrum-schema.md": schema_page(
            "Spectrum schema", "broker/spectra/spectrum.avsc", "how to send one: [spectra](../spectra.md)."
        ),
        "reference/commands.md": commands_page(),
        "reference/metrics.md": metrics_page(),
        "reference/api.md": api_page(),
        "reference/openapi.json": json.dumps(openapi(), indent=1),
        "reference/client.md": client_page(),
    }
