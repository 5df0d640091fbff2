"""Bytes to a JobRequest: the one decoder for all doors, so that the same request becomes the same value.

Pure. It checks the envelope (wire contract, section 3.1); the algorithm's inputs are checked against its own schema
later, and where images may go is decided by `storage/destinations.py`, whose reader of `outputStorage` the daemon hands
in. After this nobody looks at raw JSON again.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from cador_trio.errors import RequestRefused
from cador_trio.job import JobRequest, Json, JsonObject, Referential, StorageRequest
from cador_trio.json_text import NotJson, read_request

ReadStorage = Callable[[Json], StorageRequest | None]


def decode_request(data: bytes, read_storage: ReadStorage) -> JobRequest:
    """A request as a door received it.

    Raises:
        RequestRefused: not strict JSON, not an object, or a part of the envelope that is not as the contract says.
    """
    try:
        body = read_request(data)
    except NotJson as error:
        raise RequestRefused("the request is not JSON", hint=str(error)) from error
    if not isinstance(body, dict):
        raise RequestRefused(
            f"the request must be a JSON object, not {_kind(body)}",
            hint="put the algorithm's inputs at its top level, beside technicalMetadata and userMetadata",
        )
    inputs = {name: value for name, value in body.items() if name not in {"technicalMetadata", "userMetadata"}}
    technical = _object(body.get("technicalMetadata", {}), "technicalMetadata")
    return JobRequest(
        inputs=inputs,
        technical_metadata=technical,
        user_metadata=body.get("userMetadata", {}),
        task_id=_task_id(technical.get("taskId")),
        input_timestamp=technical.get("inputTimestamp"),
        storage=read_storage(technical.get("outputStorage")),
        wants_tags=_wants_tags(technical),
        referential=_referential(technical.get("referential")),
        size=len(data),
    )


def _task_id(value: Json) -> str | int | float | None:
    if value is None or (isinstance(value, str | int | float) and not isinstance(value, bool)):
        return value or None if isinstance(value, str) else value
    raise RequestRefused(f"technicalMetadata.taskId must be a text or a number, not {_kind(value)}")


def _wants_tags(technical: JsonObject) -> bool:
    if "postProcessing" not in technical:
        return False
    tags = _object(technical["postProcessing"], "technicalMetadata.postProcessing").get("tags", False)
    if not isinstance(tags, bool):
        raise RequestRefused(
            f"technicalMetadata.postProcessing.tags must be true or false, not {_kind(tags)}",
            hint='write true or false without quotes: the text "false" is not false',
        )
    return tags


def _referential(value: Json) -> Referential | None:
    if value is None:
        return None
    referential = _object(value, "technicalMetadata.referential")
    upper_left = _object(referential.get("upperLeft"), "technicalMetadata.referential.upperLeft")
    return Referential(
        upper_left_lon=_degrees(upper_left, "upperLeft.lon", limit=None),
        upper_left_lat=_degrees(upper_left, "upperLeft.lat", limit=90),
        lon_step=_step(referential, "lonStep"),
        lat_step=_step(referential, "latStep"),
    )


def _degrees(holder: JsonObject, name: str, limit: float | None) -> float:
    number = _number(holder, name)
    if limit is not None and abs(number) > limit:
        raise RequestRefused(f"technicalMetadata.referential.{name} must lie between -{limit} and {limit} degrees")
    return number


def _step(referential: JsonObject, name: str) -> float:
    step = _number(referential, name)
    if step == 0:
        raise RequestRefused(f"technicalMetadata.referential.{name} must not be zero", hint="it is degrees per pixel")
    return step


def _number(holder: JsonObject, name: str) -> float:
    value = holder.get(name.rsplit(".", 1)[-1])
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RequestRefused(
            f"technicalMetadata.referential.{name} must be a number, "
            + ("but it is missing" if value is None else f"not {_kind(value)}"),
            hint="a referential has upperLeft.lat, upperLeft.lon, latStep and lonStep, all in degrees",
        )
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise RequestRefused(f"technicalMetadata.referential.{name} must be finite")
    return number


def _object(value: Json, where: str) -> JsonObject:
    if not isinstance(value, dict):
        raise RequestRefused(f"{where} must be an object, not {_kind(value)}", hint=f"leave {where} out if it is empty")
    return value


def _kind(value: Json) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a text"
        case list():
            return "an array"
        case _:
            return "an object"
