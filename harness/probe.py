"""Odd arguments that a tool's schema allows: what a model may write, and what a tool must answer rather than fail on."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

from pydantic import JsonValue, TypeAdapter

TEXTS: tuple[JsonValue, ...] = ("", "no such thing", "0", "-1", "../..", "' \" \\ % {} [ é 漢\t", "one\ntwo\n", "nul \0", "a" * 10_000)
INTEGERS: tuple[JsonValue, ...] = (0, 1, -1, 1_000_000, 2**70)
NUMBERS: tuple[JsonValue, ...] = (0.0, -1.5, 1e-300, 1e300, 7)


def odd_calls(method: Callable[..., str]) -> Iterator[dict[str, JsonValue]]:
    """Arguments for some calls of an annotated method: the required ones alone first, then all, each through its values in turn."""
    parameters = [parameter for parameter in inspect.signature(method, eval_str=True).parameters.values() if parameter.name != "self"]
    values = {parameter.name: _values_of(parameter.annotation) for parameter in parameters}
    required = [parameter.name for parameter in parameters if parameter.default is inspect.Parameter.empty]
    yield {name: values[name][0] for name in required}
    for turn in range(max((len(of_one) for of_one in values.values()), default=0)):
        yield {name: of_one[turn % len(of_one)] for name, of_one in values.items()}


def _values_of(annotation: Any) -> list[JsonValue]:
    schema = TypeAdapter(annotation).json_schema()
    return _values(schema, schema.get("$defs", {}), 3)


def _values(schema: Any, definitions: dict[str, Any], depth: int) -> list[JsonValue]:
    """Values of a JSON schema, at least one; its limits (`minimum`, `pattern`) are not looked at. Nested deeper than `depth` is null."""
    if depth == 0:
        return [None]
    if "$ref" in schema:
        return _values(definitions[schema["$ref"].rpartition("/")[2]], definitions, depth - 1)
    if "enum" in schema or "const" in schema:
        return list(schema.get("enum", [schema.get("const")]))
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return list(chain.from_iterable(_values(one, definitions, depth) for one in schema[several]))
    kind = schema.get("type")
    if kind == "array":
        items = _values(schema.get("items", {}), definitions, depth - 1)
        return [[], items[:1], items]
    if kind == "object" and "properties" in schema:
        fields = {name: _values(field, definitions, depth - 1) for name, field in schema["properties"].items()}
        longest = max(map(len, fields.values()), default=1)
        return [{name: of_one[turn % len(of_one)] for name, of_one in fields.items()} for turn in range(longest)]
    if kind == "object":
        further = schema.get("additionalProperties")
        return [{}, {"no such key": _values(further if isinstance(further, dict) else {}, definitions, depth - 1)[0]}]
    simple: dict[Any, tuple[JsonValue, ...]] = {"integer": INTEGERS, "number": NUMBERS, "boolean": (True, False), "null": (None,)}
    return list(simple.get(kind, TEXTS))
