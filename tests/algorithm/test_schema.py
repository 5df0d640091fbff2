"""Requests against the algorithm's input schema, and what schemas say of their properties."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cador_trio.algorithm.schema import compile_inputs, image_properties, number_properties
from cador_trio.errors import RequestRefused

VECTORS = Path(__file__).parent / "vectors"

DEFINITIONS = {
    "Image": {"$schema": "http://json-schema.org/draft-06/schema#", "type": "string"},
    "Images": {"type": "array", "items": {"$ref": "#/definitions/Image"}},
}
# As PESTO sends it, with its misspelt `definition`.
SCHEMA = {
    "$schema": "http://json-schema.org/draft-06/schema#",
    "title": "ships",
    "type": "object",
    "description": "Expected format",
    "definition": "inputs",
    "definitions": DEFINITIONS,
    "properties": {
        "image": {"$ref": "#/definitions/Image"},
        "sigma": {"type": "number", "minimum": 0},
        "mode": {"enum": ["fast", "exact"]},
        "label": {"type": ["string", "null"], "maxLength": 5, "pattern": "^a"},
        "windows": {"type": "array", "items": {"type": "object", "properties": {"x": {"type": "integer"}}}},
        "closed": {"type": "object", "properties": {"a": {}}, "additionalProperties": False},
        "either": {"oneOf": [{"type": "string"}, {"type": "number"}]},
    },
    "required": ["image"],
}
VALIDATOR = compile_inputs(SCHEMA)


def hint(schema: Any, inputs: dict[str, Any]) -> str:
    validator = compile_inputs(schema)
    assert validator.problem is None
    with pytest.raises(RequestRefused) as refused:
        validator.check(inputs)
    assert refused.value.message == "the request does not match the algorithm's input schema"
    return refused.value.hint


def nested(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {"a": value}
    return value


def test_the_refusal_of_the_vector() -> None:
    """Message and hint are the contract's, and become a 400."""
    expected = json.loads((VECTORS / "error-400.json").read_text(encoding="utf-8"))
    with pytest.raises(RequestRefused) as refused:
        VALIDATOR.check({})
    assert refused.value.message == expected["message"]
    assert refused.value.hint == expected["hint"]
    assert refused.value.http_status == 400


def test_valid_inputs_pass() -> None:
    """Unknown keys are as the schema says: allowed unless it forbids them."""
    VALIDATOR.check({"image": "file:///data/in/scene.tif", "sigma": 3.0, "mode": "fast", "unknown": [1, {"a": None}]})


@pytest.mark.parametrize(
    ("inputs", "finding"),
    [
        ({"image": 5}, "image: must be string, not number"),
        ({"image": None}, "image: must be string, not null"),
        ({"image": ["x"]}, "image: must be string, not array"),
        ({"label": True}, "label: must be null or string, not boolean"),
        ({"sigma": -1}, "sigma: must be at least 0"),
        ({"mode": "slow"}, "mode: must be one of fast, exact"),
        ({"label": "abcdefgh"}, "label: must have at most 5 characters"),
        ({"label": "b"}, "label: must match the pattern ^a"),
        ({"windows": [{"x": 1}, {"x": "secret"}]}, "windows[1].x: must be integer, not string"),
        ({"closed": {"b": 1, "c\n": 2}}, "closed.b: not allowed by the schema; closed.c?: not allowed by the schema"),
        ({"either": {}}, "either: must match exactly one of the allowed forms"),
    ],
)
def test_findings_say_where_and_what(inputs: dict[str, Any], finding: str) -> None:
    """A path and short words for every kind of mistake."""
    assert hint(SCHEMA, {"image": "x"} | inputs) == finding


@pytest.mark.parametrize(
    ("schema", "finding"),
    [
        ({"minProperties": 2}, "the request: does not satisfy minProperties"),
        ({"properties": {"a": {"const": 5}}}, "a: does not satisfy const"),
        ({"properties": {"a": False}}, "a: not allowed by the schema"),
        ({"anyOf": [{"required": ["b"]}, {"required": ["c"]}]}, "the request: must match one of the allowed forms"),
        ({"dependencies": {"a": ["b"]}}, "b: a required property is missing"),
    ],
)
def test_findings_about_rarer_keywords(schema: Any, finding: str) -> None:
    """Whatever keyword refuses, the finding names it."""
    assert hint(schema, {"a": 1}) == finding


def test_values_are_never_quoted() -> None:
    """Neither a picture of five megabytes nor a secret gets into a refusal."""
    pixels = "SECRET" * 800_000
    assert "SECRET" not in hint(SCHEMA, {"image": {"x": pixels}, "mode": pixels, "label": pixels, "windows": pixels})


def test_findings_are_counted_past_ten() -> None:
    """Ten findings are named, the others are counted."""
    text = hint(SCHEMA, {"image": "x", "windows": [{"x": "no"} for _ in range(13)]})
    assert text.count("must be integer") == 10
    assert text.endswith("; and 3 more")


def test_a_large_request_gets_its_first_finding() -> None:
    """Findings of a huge array are not all made, since that would hold up everybody."""
    text = hint(SCHEMA, {"image": "x", "windows": [{"x": "no"}] * 5_000})
    assert text == "windows[0].x: must be integer, not string; there may be more"


def test_long_keys_and_patterns_are_cut() -> None:
    """A finding stays short, whoever wrote the key."""
    text = hint({"properties": {"a": {}}, "additionalProperties": False}, {"k" * 5_000: 1})
    assert text == "k" * 79 + "…: not allowed by the schema"
    assert len(hint({"properties": {"a": {"enum": ["x" * 500] * 500}}}, {"a": 1})) < 120


def test_the_key_of_pesto_is_not_checked() -> None:
    """PESTO takes `pesto` out before it validates, so it may be there even if the schema is closed."""
    validator = compile_inputs({"properties": {"image": {}}, "additionalProperties": False})
    inputs = {"image": "x", "pesto": {"roi": {}}}
    validator.check(inputs)
    assert "pesto" in inputs


def test_formats_and_encodings_do_not_refuse() -> None:
    """The algorithm takes a URI where its schema says base64, so it is no mistake."""
    declared = {"type": "string", "format": "uri", "contentEncoding": "base64", "contentMediaType": "application/json"}
    compile_inputs({"properties": {"image": declared}}).check({"image": "not any of this!"})


@pytest.mark.parametrize(
    ("marker", "schema"),
    [
        ("http://json-schema.org/draft-04/schema#", {"minimum": 1, "exclusiveMinimum": True}),
        ("http://json-schema.org/draft-06/schema#", {"exclusiveMinimum": 1}),
        ("http://json-schema.org/draft-07/schema#", {"if": {"minimum": 0}, "then": {"minimum": 2}}),
        ("https://json-schema.org/draft/2019-09/schema", {"$ref": "#/$defs/n", "minimum": 2}),
        ("https://json-schema.org/draft/2020-12/schema", {"$ref": "#/$defs/n", "minimum": 2}),
    ],
)
def test_the_schema_names_its_draft(marker: str, schema: Any) -> None:
    """Each draft's own keywords work: a draft-4 flag, a draft-6 number, draft-7 `if`, siblings of `$ref` later."""
    document = {"$schema": marker, "$defs": {"n": {"type": "number"}}, "properties": {"a": schema}}
    validator = compile_inputs(document)
    assert validator.problem is None
    validator.check({"a": 3})
    with pytest.raises(RequestRefused):
        validator.check({"a": 1})


@pytest.mark.parametrize("marker", [None, "http://example.org/unheard-of"])
def test_an_unnamed_draft_is_seven(marker: str | None) -> None:
    """Draft 7 knows `items` as an array and ignores what stands beside a `$ref`."""
    declared = {"items": [{"$ref": "#/definitions/n", "minimum": 5}, {"type": "string"}]}
    schema: dict[str, Any] = {"definitions": {"n": {"type": "number"}}, "properties": {"a": declared}}
    if marker is not None:
        schema["$schema"] = marker
    assert compile_inputs(schema).problem is None
    compile_inputs(schema).check({"a": [1, "x"]})
    assert hint(schema, {"a": ["x", "x"]}) == "a[0]: must be number, not string"


@pytest.mark.parametrize(
    "schema",
    [
        None,
        [],
        "text",
        {"type": "strng"},
        {"type": 5},
        {"$schema": 5},
        {"properties": {"a": {"pattern": "("}}},
        {"$ref": "http://127.0.0.1:9/schema.json"},
        {"$ref": "file:///etc/passwd"},
        {"$ref": "#/definitions/missing"},
        {"properties": {"a": {"required": True}}},
        {"properties": {"\ud800": {}}},
    ],
)
def test_a_schema_that_does_not_compile_refuses_nothing(schema: Any) -> None:
    """The service goes on, the log gets the problem, and no reference is fetched."""
    validator = compile_inputs(schema)
    assert validator.problem
    assert len(validator.problem) < 400
    validator.check({"anything": None})
    assert validator.without_null_options({"anything": None}) == {"anything": None}


def test_no_reference_is_fetched(tmp_path: Path) -> None:
    """Not even a good schema on our own disk is read because an algorithm names it."""
    target = tmp_path / "image.json"
    target.write_text('{"type": "string"}', encoding="utf-8")
    validator = compile_inputs({"properties": {"image": {"$ref": target.as_uri()}}})
    assert validator.problem is not None
    assert "remote references are not followed" in validator.problem


def test_optional_nulls_are_left_out() -> None:
    """Null means "not given" where the schema has no null; required, nullable and unknown inputs keep theirs."""
    inputs = {"image": None, "sigma": None, "label": None, "either": None, "unknown": None, "pesto": None}
    assert VALIDATOR.without_null_options(inputs) == {"image": None, "label": None, "unknown": None, "pesto": None}
    assert "sigma" in inputs


def test_without_nulls_nothing_is_copied() -> None:
    """A payload of megabytes passes through as it is."""
    inputs = {"image": "x"}
    assert VALIDATOR.without_null_options(inputs) is inputs


def test_depth_and_size_of_numbers_are_no_trouble() -> None:
    """A hundred levels under a recursive schema, huge integers and lone surrogates end in a pass or a refusal."""
    recursive = compile_inputs({"properties": {"a": {"$ref": "#"}}, "additionalProperties": False})
    recursive.check(nested(100))
    VALIDATOR.check({"image": "x", "sigma": 10**400})
    VALIDATOR.check({"image": "\ud800"})
    with pytest.raises(RequestRefused, match="does not match"):
        VALIDATOR.check({"image": "x", "\ud800": 1})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from([*SCHEMA["properties"], "pesto"]) | st.text(), json_values, max_size=6))
def test_any_inputs_pass_or_are_refused(inputs: dict[str, Any]) -> None:
    """No JSON raises anything but RequestRefused."""
    with contextlib.suppress(RequestRefused):
        VALIDATOR.check(VALIDATOR.without_null_options(inputs))


@given(
    st.recursive(
        json_values | st.sampled_from(["object", "string", "#", "#/properties/a"]),
        lambda inner: st.dictionaries(
            st.sampled_from(["type", "properties", "a", "$ref", "items", "required", "enum", "anyOf", "minimum"]),
            inner,
            max_size=5,
        ),
        max_leaves=20,
    )
)
def test_any_schema_compiles_or_names_its_problem(schema: Any) -> None:
    """No schema raises when it is compiled or used, whatever it refuses."""
    validator = compile_inputs(schema)
    image_properties(schema)
    number_properties(schema)
    try:
        validator.check(validator.without_null_options({"a": None, "b": {"a": 1}}))
    except RequestRefused:
        assert validator.problem is None


@pytest.mark.parametrize(
    ("declared", "kind"),
    [
        ({"$ref": "#/definitions/Image"}, False),
        ({"$ref": "#/definitions/Images"}, True),
        ({"$ref": "#/$defs/RGBImages"}, True),
        ({"$ref": "#/definitions/Image_2"}, False),
        ({"type": "array", "items": {"$ref": "#/definitions/Image"}}, True),
        ({"type": "string", "format": "base64"}, False),
        ({"type": "string", "contentEncoding": "base64", "contentMediaType": "image/tiff"}, False),
        ({"type": "array", "items": {"type": "string", "contentEncoding": "base64"}}, True),
        ({"type": "string", "contentEncoding": "base64", "contentMediaType": "application/pdf"}, None),
        ({"type": "object", "format": "base64"}, None),
        ({"$ref": "#/definitions/ImageMetadata"}, None),
        ({"$ref": "#/definitions/Polygon"}, None),
        ({"$ref": "http://example.org/#/definitions/Image"}, None),
        ({"$ref": 5}, None),
        ({"type": "array", "items": {"type": "array", "items": {"$ref": "#/definitions/Image"}}}, None),
        ({"type": "array", "items": {"$ref": "#/definitions/Images"}}, None),
        ({"type": "string"}, None),
        ("image", None),
    ],
)
def test_images_are_found_in_both_dialects(declared: Any, kind: bool | None) -> None:
    """By `$ref` or by base64, one or a list; metadata about images are no images."""
    assert image_properties({"properties": {"x": declared}}) == ({} if kind is None else {"x": kind})


def test_numbers_are_found() -> None:
    """Only what is a number and nothing else: a union with text is sent as text."""
    kinds = {
        "a": "number",
        "b": "integer",
        "c": ["integer", "number"],
        "d": ["number", "string"],
        "e": "string",
        "f": {},
    }
    properties = {name: {"type": kind} for name, kind in kinds.items()}
    assert number_properties({"properties": properties | {"g": "number", "h": {"type": []}}}) == {"a", "b", "c"}
    assert number_properties(None) == frozenset()
