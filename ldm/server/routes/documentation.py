"""A page of the OpenAPI document, which loads nothing from elsewhere."""

from __future__ import annotations

import json
from html import escape
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

router = APIRouter(include_in_schema=False)
STYLE = "/page/docs.css"


@router.get("/docs")
async def documentation(request: Request) -> HTMLResponse:
    """Return the page."""
    return HTMLResponse(render(request.app.openapi()))


def render(document: dict[str, Any]) -> str:
    """Return an OpenAPI document as a page of HTML."""
    info = document["info"]
    title = f"{info['title']} {info['version']}: HTTP"
    parts = [
        '<!doctype html><html lang="en"><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width">',
        f'<title>{escape(title)}</title><link rel="stylesheet" href="{STYLE}">',
        f"<main><h1>{escape(title)}</h1><p>{escape(info.get('summary', ''))}. The document itself, "
        'for programs: <a href="/openapi.json">/openapi.json</a>.</p>',
    ]
    for path, methods in document["paths"].items():
        for method, route in methods.items():
            parts.append(render_route(method, path, route))
    parts.append("<h2>Bodies and answers</h2>")
    for name, schema in document.get("components", {}).get("schemas", {}).items():
        parts.append(render_schema(name, schema))
    return "\n".join([*parts, "</main></html>"])


def render_route(method: str, path: str, route: dict[str, Any]) -> str:
    """Return the section of one route."""
    rows = [
        row(each["name"], type_of(each.get("schema", {})), each.get("description", ""))
        for each in route.get("parameters", [])
    ]
    for content in (route.get("requestBody") or {}).get("content", {}).items():
        rows.append(row("body", f"{escape(content[0])}: {type_of(content[1]['schema'])}", ""))
    for status, answer in route["responses"].items():
        kinds = ", ".join(
            f"{escape(kind)}: {type_of(content.get('schema', {}))}"
            for kind, content in answer.get("content", {}).items()
        )
        rows.append(row(status, kinds, answer.get("description", "")))
    about = escape(route.get("description") or route.get("summary", ""))
    return (
        f"<section><h2><code>{method.upper()} {escape(path)}</code></h2><p>{about}</p>"
        f"<table>{''.join(rows)}</table></section>"
    )


def render_schema(name: str, schema: dict[str, Any]) -> str:
    """Return the section of a body or an answer."""
    rows = [
        row(key, type_of(each), each.get("description", ""))
        for key, each in schema.get("properties", {}).items()
    ]
    about = escape(schema.get("description", ""))
    return (
        f'<section><h3 id="{escape(name)}"><code>{escape(name)}</code></h3><p>{about}</p>'
        f"<table>{''.join(rows)}</table></section>"
    )


def row(name: str, kind: str, about: str) -> str:
    """Return a row of a table; kind is HTML."""
    return (
        f'<tr><th scope="row"><code>{escape(name)}</code></th><td>{kind}</td>'
        f"<td>{escape(about)}</td></tr>"
    )


def type_of(schema: dict[str, Any]) -> str:
    """Return a type of JSON Schema as HTML, with links to named ones."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " or ".join(type_of(each) for each in schema[key])
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return " or ".join(escape(json.dumps(value)) for value in values)
    kind = escape(str(schema.get("type", "anything")))
    if kind == "array":
        return f"list of {type_of(schema.get('items', {}))}"
    bounds = [
        f"{words} {schema[key]:g}"
        for key, words in {
            "minimum": "≥",
            "maximum": "≤",
            "exclusiveMinimum": "&gt;",
            "exclusiveMaximum": "&lt;",
        }.items()
        if key in schema
    ]
    return " ".join([kind, *bounds])
