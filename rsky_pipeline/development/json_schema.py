"""JSON Schemas of typed documents: docs/status.schema.json, by `make docs`."""

import json
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints, is_typeddict

from rsky_pipeline.supervisor.status_document import SCHEMA_VERSION, PipelineStatus

_SIMPLE = {str: "string", bool: "boolean", int: "integer", float: "number", NoneType: "null"}


def status_schema() -> str:
    """Return the schema of `status --json`."""
    definitions: dict[str, Any] = {}
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"rsky-pipeline status --json, schema_version {SCHEMA_VERSION}",
        **_schema(PipelineStatus, definitions),
        "$defs": definitions,
    }
    return json.dumps(schema, indent=2) + "\n"


def _schema(form: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    form = getattr(form, "__supertype__", form)
    if is_typeddict(form):
        if form.__name__ not in definitions:
            definitions[form.__name__] = {}  # a form may hold itself
            definitions[form.__name__] = _object(form, definitions)
        return {"$ref": f"#/$defs/{form.__name__}"}
    kind, arguments = get_origin(form), get_args(form)
    if kind is UnionType:
        return {"anyOf": [_schema(each, definitions) for each in arguments]}
    if kind is list:
        return {"type": "array", "items": _schema(arguments[0], definitions)}
    if kind is dict:
        return {"type": "object", "additionalProperties": _schema(arguments[1], definitions)}
    if kind is Literal:
        return {"enum": list(arguments)}
    return {"type": _SIMPLE[form]}


def _object(form: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    hints = get_type_hints(form)
    return {
        "type": "object",
        "description": " ".join((form.__doc__ or "").split()),
        "properties": {name: _schema(hint, definitions) for name, hint in hints.items()},
        "required": sorted(form.__required_keys__),
    }
