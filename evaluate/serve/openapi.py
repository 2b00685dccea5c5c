"""The description of the API, for programs (OpenAPI 3.1) and as a page for people."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import Any

import msgspec

from hada.evaluate.serve.requests import (
    MOST_TOP,
    Batch,
    BatchQuery,
    Health,
    Info,
    Looked,
    LookQuery,
    Problem,
    Results,
    TextQuery,
)

_REFERENCE = "#/components/schemas/{name}"
_KINDS = (TextQuery, BatchQuery, LookQuery, Results, Batch, Looked, Info, Health, Problem)
_WRONG = ("400", "401", "404", "413", "503")


def openapi(version: str, *, token: bool) -> dict[str, Any]:
    """The description; `token` says whether clients must send one."""
    (_, schemas) = msgspec.json.schema_components(_KINDS, ref_template=_REFERENCE)
    # What a type cannot say: a batch that is not empty.
    schemas["BatchQuery"]["anyOf"] = [
        {"required": [name], "properties": {name: {"minItems": 1}}} for name in ("texts", "images")
    ]
    search = [_top(), _find(), _split(), _ranks()]
    paths = {
        "/api/text": {"post": _post("Search by a sentence", _json("TextQuery"), "Results")},
        "/api/image": {
            "post": _post("Search by an image: the body is its file", _file(), "Results", search)
        },
        "/api/batch": {
            "post": _post("Search by many sentences and images", _json("BatchQuery"), "Batch")
        },
        "/api/look": {
            "post": _post(
                "What the run looks at in a sentence and an image: which patch answered which word",
                _json("LookQuery"),
                "Looked",
            )
        },
        "/api/look/image": {
            "post": _post(
                "The same of an image, which is the body, and a caption",
                _file(),
                "Looked",
                [_id(), _split()],
            )
        },
        "/api/picture": {
            "get": {
                "summary": "The image of a result, as a small JPEG",
                "parameters": [_id(), _split()],
                "responses": {
                    "200": {"description": "The image", "content": {"image/jpeg": {}}},
                    **_problems("401", "404"),
                },
            }
        },
        "/api/info": {
            "get": _get("What is searched: run, data set, splits, sizes, limits", "Info")
        },
        "/health": {"get": _get("Whether the server answers", "Health")},
        "/metrics": {
            "get": {
                "summary": "Counters in Prometheus' text format",
                "responses": {
                    "200": {"description": "Text", "content": {"text/plain": {}}},
                    **_problems("401"),
                },
            }
        },
    }
    described: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "HADA: search by text and image", "version": version},
        "paths": paths,
        "components": {"schemas": schemas},
    }
    if token:
        scheme = {"type": "http", "scheme": "bearer"}
        described["components"]["securitySchemes"] = {"token": scheme}
        described["security"] = [{"token": []}]
        paths["/health"]["get"]["security"] = []
    return described


def _reference(name: str) -> dict[str, Any]:
    return {"schema": {"$ref": _REFERENCE.format(name=name)}}


def _json(name: str) -> dict[str, Any]:
    return {"required": True, "content": {"application/json": _reference(name)}}


def _file() -> dict[str, Any]:
    binary = {"schema": {"type": "string", "format": "binary"}}
    return {"required": True, "content": {"image/*": binary}}


def _post(
    summary: str,
    body: dict[str, Any],
    answer: str,
    parameters: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    done = {"description": "The answer", "content": {"application/json": _reference(answer)}}
    described: dict[str, Any] = {"summary": summary, "requestBody": body}
    if parameters:
        described["parameters"] = [*parameters]
    return {**described, "responses": {"200": done, **_problems(*_WRONG)}}


def _get(summary: str, answer: str) -> dict[str, Any]:
    done = {"description": "JSON", "content": {"application/json": _reference(answer)}}
    return {"summary": summary, "responses": {"200": done, **_problems("401")}}


def _problems(*statuses: str) -> dict[str, Any]:
    content = {"application/json": _reference("Problem")}
    return {status: {"description": "Says why", "content": content} for status in statuses}


def _query(name: str, schema: dict[str, Any], *, required: bool = False) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": required, "schema": schema}


def _id() -> dict[str, Any]:
    return _query("id", {"type": "string"}, required=True)


def _top() -> dict[str, Any]:
    whole = {"type": "integer", "minimum": 1, "maximum": MOST_TOP, "default": 10}
    return _query("top", whole)


def _find() -> dict[str, Any]:
    return _query("find", {"enum": ["images", "captions"], "default": "captions"})


def _split() -> dict[str, Any]:
    return _query("split", {"type": "string"})


def _ranks() -> dict[str, Any]:
    return _query("ranks", {"type": "boolean", "default": False})


def as_page(described: dict[str, Any]) -> str:
    """The body of a page that shows the description, without a script and from nowhere else."""
    parts = ["<h1>The API</h1>", '<p>For programs: <a href="/openapi.json">openapi.json</a>.</p>']
    for path, methods in described["paths"].items():
        for method, entry in methods.items():
            parts.append(f"<h2><code>{method.upper()} {html.escape(path)}</code></h2>")
            parts.append(f"<p>{html.escape(entry['summary'])}.</p>")
            shown = {k: entry[k] for k in ("parameters", "requestBody") if k in entry}
            if shown:
                parts.append(f"<pre>{html.escape(json.dumps(shown, indent=1))}</pre>")
    schemas = json.dumps(described["components"]["schemas"], indent=1)
    parts.append(f"<h2>Shapes</h2><pre>{html.escape(schemas)}</pre>")
    return "".join(parts)
