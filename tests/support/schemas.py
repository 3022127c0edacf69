"""Random JSON schemas whose answers end, and a validator of our own for what they use."""

import json
import math
import re
from collections.abc import Callable
from random import Random
from typing import Any

Schema = dict[str, Any]

NAMES = ("id", "größe", "a b", 'say "hi"', "back\\slash", "line\nbreak", "工具", "🛠", "x/y~z", "")
PATTERNS = (
    r"^[a-z]{1,8}$",
    r"^(red|green|blue)$",
    r"^[0-9]{4}-[0-9]{2}$",
    r"^\+[0-9]{5,9}$",
    r"^[äöüß]{2,5}$",
    r"^(a|b)*c?[^x]{0,3}$",
)
_DEEPEST = 3


def random_schema(seed: int) -> Schema:
    """Return a schema with nested objects and arrays; every text that fits it is short."""
    return _object(Random(seed), 0)  # noqa: S311 - no secrets here


def parse(text: str) -> Any:
    """Parse strict JSON: no NaN, no repeated keys, no half characters, no space around."""
    value = json.loads(text, object_pairs_hook=_pairs, parse_constant=_refuse)
    json.dumps(value, ensure_ascii=False).encode()
    assert text == text.strip()
    return value


def faults(schema: Schema, value: Any, path: str = "$") -> list[str]:
    """Return what is wrong with a value, each with its path; nothing if it fits the schema."""
    if "anyOf" in schema:
        fits = any(not faults(option, value, path) for option in schema["anyOf"])
        return [] if fits else [f"{path} fits no alternative"]
    if "enum" in schema or "const" in schema:
        allowed = schema.get("enum", [schema.get("const")])
        fits = any(_same(value, one) for one in allowed)
        return [] if fits else [f"{path} is {value!r}, not one of {allowed!r}"]
    kind, check = _CHECKS[schema["type"]]
    if not isinstance(value, kind) or (isinstance(value, bool) and bool not in kind):
        return [f"{path} is {value!r}, not of type {schema['type']}"]
    return check(schema, value, path)


def _object(random: Random, depth: int) -> Schema:
    names = random.sample(NAMES, random.randint(0, 4))
    return {
        "type": "object",
        "properties": {name: _any(random, depth + 1) for name in names},
        "required": [name for name in names if random.random() < 0.6],
        "additionalProperties": False,
    }


def _array(random: Random, depth: int) -> Schema:
    least = random.randint(0, 2)
    most = least + random.randint(0, 2)
    items = _any(random, depth + 1)
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


def _any_of(random: Random, depth: int) -> Schema:
    return {"anyOf": [_any(random, depth + 1) for _ in range(random.randint(1, 3))]}


def _any(random: Random, depth: int) -> Schema:
    nested = (_object, _array, _any_of) if depth < _DEEPEST else ()
    simple = (_string, _string, _integer, _number, _fixed)
    make: Callable[[Random, int], Schema] = random.choice([*nested, *simple])
    return make(random, depth)


def _string(random: Random, _depth: int) -> Schema:
    if random.random() < 0.4:
        return {"type": "string", "pattern": random.choice(PATTERNS), "maxLength": 12}
    least = random.randint(0, 3)
    return {"type": "string", "minLength": least, "maxLength": least + random.randint(0, 6)}


def _integer(random: Random, _depth: int) -> Schema:
    low = random.randint(-1000, 1000)
    high = low + random.randint(1, 5000)
    lower = random.choice(["minimum", "exclusiveMinimum"])
    return {"type": "integer", lower: low, "maximum": high}


def _number(random: Random, _depth: int) -> Schema:
    low = round(random.uniform(-50, 50), random.randint(0, 3))
    high = low + random.choice([0.5, 1, 12.25, 1000])
    upper = random.choice(["maximum", "exclusiveMaximum"])
    return {"type": "number", "minimum": low, upper: high}


def _fixed(random: Random, _depth: int) -> Schema:
    values = [True, None, -0.5, 12, "größer", 'q"q', "", "工具", [1, "a"], {"k": None}]
    options: list[Schema] = [
        {"type": "boolean"},
        {"type": "null"},
        {"const": random.choice(values)},
        {"enum": random.sample(values, random.randint(1, 4))},
    ]
    return random.choice(options)


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len(dict(pairs)) == len(pairs), "an object repeats a key"
    return dict(pairs)


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def _same(value: Any, other: Any) -> bool:
    return type(value) is type(other) and bool(value == other)


def _check_object(schema: Schema, value: dict[str, Any], path: str) -> list[str]:
    properties = schema["properties"]
    found = [f"{path} lacks {name!r}" for name in schema["required"] if name not in value]
    found += [f"{path} has {name!r} as well" for name in value if name not in properties]
    for name in value.keys() & properties.keys():
        found += faults(properties[name], value[name], f"{path}.{name}")
    return found


def _check_array(schema: Schema, value: list[Any], path: str) -> list[str]:
    found = []
    if not schema["minItems"] <= len(value) <= schema["maxItems"]:
        found.append(f"{path} has {len(value)} items")
    for index, item in enumerate(value):
        found += faults(schema["items"], item, f"{path}[{index}]")
    return found


def _check_string(schema: Schema, value: str, path: str) -> list[str]:
    fits = schema.get("minLength", 0) <= len(value) <= schema["maxLength"]
    fits = fits and re.search(schema.get("pattern", ""), value) is not None
    return [] if fits else [f"{path} is {value!r}, against {schema}"]


def _check_number(schema: Schema, value: float, path: str) -> list[str]:
    low, high = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
    above, below = (
        schema.get("exclusiveMinimum", -math.inf),
        schema.get("exclusiveMaximum", math.inf),
    )
    fits = low <= value <= high and above < value < below
    return [] if fits else [f"{path} is {value!r}, against {schema}"]


def _no_more(_schema: Schema, _value: Any, _path: str) -> list[str]:
    return []


_CHECKS: dict[str, tuple[tuple[type, ...], Callable[[Schema, Any, str], list[str]]]] = {
    "object": ((dict,), _check_object),
    "array": ((list,), _check_array),
    "string": ((str,), _check_string),
    "integer": ((int,), _check_number),
    "number": ((int, float), _check_number),
    "boolean": ((bool,), _no_more),
    "null": ((type(None),), _no_more),
}
