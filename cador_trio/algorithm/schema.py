"""What the schemas of the describe document say: which inputs are valid, which properties are images or numbers.

Pure: a schema goes in, a validator or names come out. Nothing is fetched (a remote `$ref` is a problem of the schema),
nothing is cached, and no finding quotes a value of the request: values can be megabytes of pixels, or secrets.

A sidecar must not refuse what the algorithm would take. So `format`, `contentEncoding` and `contentMediaType` are
annotations here, as they are to the validators that algorithms use, and a schema that does not compile accepts
everything and names its problem.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NoReturn

import jsonschema_rs

from cador_trio.errors import RequestRefused
from cador_trio.job import Json, JsonObject

MAX_FINDINGS: Final = 10  # findings that a refusal names; the rest is counted
MAX_QUOTE: Final = 80  # characters of a key, of a pattern or of the allowed values in a finding
MAX_PROBLEM: Final = 300  # characters that the log gets about a schema that does not compile

# All findings of one request are made before the first can be read, at about 10 us each. A larger request (JSON values,
# counted at all levels) gets its first finding only, which keeps a refusal in the tens of milliseconds.
MAX_VALUES_LISTED: Final = 2_000

# PESTO's own key (region of interest): it takes it out before it validates (wire contract, 1.3).
UNCHECKED_KEY: Final = "pesto"

MESSAGE: Final = "the request does not match the algorithm's input schema"

_DRAFTS: Final[Mapping[str, type[jsonschema_rs.Validator]]] = {
    "draft-04": jsonschema_rs.Draft4Validator,
    "draft-06": jsonschema_rs.Draft6Validator,
    "draft-07": jsonschema_rs.Draft7Validator,
    "2019-09": jsonschema_rs.Draft201909Validator,
    "2020-12": jsonschema_rs.Draft202012Validator,
}
# Without a known `$schema`. The Geo Process API is of draft 7's time, and unlike the later drafts this one still
# understands what its neighbours wrote: `definitions`, `dependencies`, `items` as an array.
_DEFAULT_DRAFT: Final = jsonschema_rs.Draft7Validator

# `#/definitions/Image`, `#/$defs/RGBImages`; not `ImageFormat` or `ImageMetadata`, which are no pictures.
_IMAGE_REFERENCE = re.compile(r"#/(?:definitions|\$defs)/[^/]*Image(?P<list>s?)[0-9_]*")
_NUMBER_TYPES: Final = ("number", "integer")

_LIMITS: Final[Mapping[str, str]] = {
    "minimum": "must be at least {}",
    "exclusiveMinimum": "must be more than {}",
    "maximum": "must be at most {}",
    "exclusiveMaximum": "must be less than {}",
    "minLength": "must have at least {} characters",
    "maxLength": "must have at most {} characters",
    "minItems": "must have at least {} items",
    "maxItems": "must have at most {} items",
}
_PLAIN_COMPLAINTS: Final[Mapping[str, str]] = {
    "falseSchema": "not allowed by the schema",
    "anyOf": "must match one of the allowed forms",
    "oneOf": "must match exactly one of the allowed forms",
}


# --- Validation --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class InputValidator:
    """Checks requests against one input schema. Immutable; may be used from any thread.

    Attributes:
        problem: why the schema can't be used, for the log; None if it can. With a problem every request passes.
    """

    problem: str | None
    _validator: jsonschema_rs.Validator | None = field(repr=False)
    _required: frozenset[str] = field(repr=False)

    def check(self, inputs: JsonObject) -> None:
        """Raise RequestRefused if the inputs do not match; the hint names up to `MAX_FINDINGS` findings.

        `inputs` come from the request decoder, so they are at most 100 levels deep. The library recurses: some 10,000
        levels under a recursive schema would overflow its stack.
        """
        if self._validator is None:
            return
        if UNCHECKED_KEY in inputs:
            inputs = {name: value for name, value in inputs.items() if name != UNCHECKED_KEY}
        try:
            valid = self._validator.is_valid(inputs)
            hint = "" if valid else _findings(self._validator, inputs)
        except (ValueError, TypeError) as error:  # a lone surrogate in a key is one way to get here
            raise RequestRefused(MESSAGE, hint="the request holds a key or value that can't be checked") from error
        if not valid:
            raise RequestRefused(MESSAGE, hint=hint)

    def without_null_options(self, inputs: JsonObject) -> JsonObject:
        """The inputs without those optional ones that are null although the schema does not allow null.

        PESTO refuses them, and their sender means "not given". A required input that is null stays, to be refused. The
        very same object comes back if nothing is left out.
        """
        dropped = {name for name, value in inputs.items() if value is None and self._refuses_null(name)}
        return {name: value for name, value in inputs.items() if name not in dropped} if dropped else inputs

    def _refuses_null(self, name: str) -> bool:
        if self._validator is None or name == UNCHECKED_KEY or name in self._required:
            return False
        try:
            return any(error.instance_path == [name] for error in self._validator.iter_errors({name: None}))
        except ValueError:  # the key is no Unicode; `check` says so
            return False


def compile_inputs(schema: Json) -> InputValidator:
    """A validator for the `input` schema of a describe document; never raises.

    `$schema` decides the draft (4, 6, 7, 2019-09, 2020-12); without one, or with an unknown one, it is draft 7.
    """
    if not isinstance(schema, dict):
        return InputValidator("the input schema is not an object", None, frozenset())
    try:
        validator = _draft_of(schema)(
            schema,
            validate_formats=False,
            retriever=_refuse_to_fetch,
            mask="the value",  # else the library writes the value, megabytes of it, into a message that nobody reads
            keywords={"contentEncoding": _Annotation, "contentMediaType": _Annotation},
        )
    except (ValueError, TypeError) as error:
        problem = " ".join(str(error).split())[:MAX_PROBLEM]
        return InputValidator(f"the input schema can't be used: {problem}", None, frozenset())
    required = schema.get("required")
    names = required if isinstance(required, list) else []
    return InputValidator(None, validator, frozenset(name for name in names if isinstance(name, str)))


def _draft_of(schema: JsonObject) -> type[jsonschema_rs.Validator]:
    named = schema.get("$schema")
    if isinstance(named, str):
        for mark, draft in _DRAFTS.items():
            if mark in named:
                return draft
    return _DEFAULT_DRAFT


def _refuse_to_fetch(uri: str) -> NoReturn:
    raise ValueError(f"remote references are not followed ({uri[:MAX_QUOTE]})")


class _Annotation:
    """A keyword that describes and never refuses; it replaces one that the library would enforce."""

    def __init__(self, parent_schema: JsonObject, value: Json, schema_path: list[str | int]) -> None:
        """What a keyword is given when its schema compiles; none of it matters here."""

    def validate(self, instance: Json) -> None:
        """Accept."""


# --- Findings ----------------------------------------------------------------------------------------------------


def _findings(validator: jsonschema_rs.Validator, inputs: JsonObject) -> str:
    if not _can_list_all(inputs):
        return f"{_first_finding(validator, inputs)}; there may be more"
    found = [text for error in validator.iter_errors(inputs) for text in _texts(error, inputs)]
    rest = len(found) - MAX_FINDINGS
    return "; ".join(found[:MAX_FINDINGS]) + (f"; and {rest} more" if rest > 0 else "")


def _first_finding(validator: jsonschema_rs.Validator, inputs: JsonObject) -> str:
    try:
        validator.validate(inputs)
    except jsonschema_rs.ValidationError as error:
        return next(_texts(error, inputs))
    raise ValueError("the validator found nothing after all")  # it has just called the same inputs invalid


def _can_list_all(inputs: JsonObject) -> bool:
    """Whether there are at most MAX_VALUES_LISTED values in it. Stops counting past that."""
    waiting: list[Json] = [inputs]
    count = 0
    while waiting and count <= MAX_VALUES_LISTED:
        value = waiting.pop()
        children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        count += 1 + len(children)
        waiting.extend(child for child in children if isinstance(child, dict | list))
    return count <= MAX_VALUES_LISTED


def _texts(error: jsonschema_rs.ValidationError, inputs: JsonObject) -> Iterator[str]:
    """One line a finding: where, and what is wrong there."""
    path = error.instance_path
    match error.kind.as_dict():
        case {"property": str(name)}:
            yield f"{_place([*path, name])}: a required property is missing"
        case {"unexpected": [_, *_] as names}:
            for name in names:
                yield f"{_place([*path, name])}: not allowed by the schema"
        case details:
            yield f"{_place(path)}: {_complaint(error.kind.name, details, _at(inputs, path))}"


def _complaint(keyword: str, details: JsonObject, value: Json) -> str:
    """What a keyword has against a value, without the value."""
    match details:
        case {"types": list(types)}:
            return f"must be {_listed(types, ' or ')}, not {_json_type(value)}"
        case {"options": list(options)}:
            return f"must be one of {_listed(options, ', ')}"
        case {"limit": limit} if keyword in _LIMITS:
            return _LIMITS[keyword].format(_short(limit))
        case {"pattern": str(pattern)}:
            return f"must match the pattern {_short(pattern)}"
    return _PLAIN_COMPLAINTS.get(keyword, f"does not satisfy {keyword}")


def _place(path: list[str | int]) -> str:
    """`a.b[3].c`; the whole request for an empty path. Keys are cut and made printable."""
    if not path:
        return "the request"
    steps = (f"[{step}]" if isinstance(step, int) else f".{_short(step)}" for step in path)
    return "".join(steps).removeprefix(".")


def _at(inputs: Json, path: list[str | int]) -> Json:
    value = inputs
    for step in path:
        value = value[step]
    return value


def _json_type(value: Json) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case str():
            return "string"
        case int() | float():
            return "number"
        case list():
            return "array"
        case _:
            return "object"


def _listed(values: list[Json], joint: str) -> str:
    return _short(joint.join(_short(value) for value in values[:MAX_QUOTE]))


def _short(value: Json) -> str:
    text = "".join(character if character.isprintable() else "?" for character in str(value)[: MAX_QUOTE + 1])
    return text if len(text) <= MAX_QUOTE else f"{text[: MAX_QUOTE - 1]}…"


# --- Kinds of properties -----------------------------------------------------------------------------------------


def properties(schema: Json) -> JsonObject:
    """The `properties` of a schema; none of whatever is not one."""
    found = schema.get("properties") if isinstance(schema, dict) else None
    return found if isinstance(found, dict) else {}


def image_properties(schema: Json) -> dict[str, bool]:
    """The properties that are images: name -> whether it is a list of them.

    PESTO says so by `$ref` (`#/definitions/Image`, `#/definitions/Images`), the templates of the Geo Process API by
    `format: base64` or `contentEncoding: base64`; both also as `items` of an array.
    """
    kinds = {name: _image_kind(declared) for name, declared in properties(schema).items()}
    return {name: is_list for name, is_list in kinds.items() if is_list is not None}


def number_properties(schema: Json) -> frozenset[str]:
    """The properties that are declared as numbers and nothing else."""
    return frozenset(name for name, declared in properties(schema).items() if _is_number(declared))


def _image_kind(declared: Json) -> bool | None:
    """True: a list of images; False: one image; None: no image."""
    if not isinstance(declared, dict):
        return None
    reference = declared.get("$ref")
    if isinstance(reference, str):
        match = _IMAGE_REFERENCE.fullmatch(reference)
        return None if match is None else bool(match["list"])
    if declared.get("type") == "array":
        return True if _image_kind(declared.get("items")) is False else None  # lists of lists are no images
    return False if _is_base64_image(declared) else None


def _is_base64_image(declared: JsonObject) -> bool:
    if "base64" not in (declared.get("format"), declared.get("contentEncoding")):
        return False
    media_type = declared.get("contentMediaType", "image/*")
    return declared.get("type") == "string" and isinstance(media_type, str) and media_type.lower().startswith("image/")


def _is_number(declared: Json) -> bool:
    kinds = declared.get("type") if isinstance(declared, dict) else None
    if isinstance(kinds, list):
        return bool(kinds) and all(kind in _NUMBER_TYPES for kind in kinds)
    return kinds in _NUMBER_TYPES
