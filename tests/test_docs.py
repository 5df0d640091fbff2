"""The pages, held against the code and each other: blocks are what they say, links lead somewhere, errors exist.

Commands are in test_docs_commands.py, the page of settings in test_settings.py, the manifests in tests/containers.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml  # type: ignore[import-untyped]  # it publishes no types

from cador_trio import errors
from cador_trio.errors import CadorError
from cador_trio.kafka.asyncapi import schemas
from cador_trio.kafka.properties import parse
from tests.kafka.schemas import validator

ROOT: Final = Path(__file__).parents[1]
PAGES: Final = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("containers/**/*.md")],
)
BLOCK: Final = re.compile(
    r"^(?P<indent> *)```(?P<language>\S*)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL
)
COMMANDS: Final = {"sh", "bash", "console"}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


every_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Language and text of each code block."""
    for found in BLOCK.finditer(page.read_text(encoding="utf-8")):
        yield found["language"], found["text"]


def prose(page: Path) -> str:
    """The page without its code blocks."""
    return BLOCK.sub("", page.read_text(encoding="utf-8"))


def test_the_walk_sees_the_pages() -> None:
    """A walk that finds nothing would find nothing wrong."""
    assert {"README.md", "SECURITY.md", "docs/kafka.md", "containers/water-bodies/README.md"} <= set(
        map(name_of, PAGES)
    )
    assert sum(len(list(blocks(page))) for page in PAGES) > 20


# --- Code blocks -------------------------------------------------------------------------------------------------


def every_json_value(text: str) -> list[Any]:
    values, decoder, rest = [], json.JSONDecoder(), text.strip()
    while rest:
        value, length = decoder.raw_decode(rest)
        values.append(value)
        rest = rest[length:].lstrip()
    return values


def _as_properties(text: str) -> None:
    assert parse(text, "CADOR_KAFKA_PROPERTIES")


READERS: Final[dict[str, Callable[[str], Any]]] = {
    "json": every_json_value,
    "toml": tomllib.loads,
    "yaml": yaml.safe_load,
    "properties": _as_properties,
}


@every_page
def test_blocks_are_what_they_say(page: Path) -> None:
    """JSON, YAML, TOML and properties can be read as such; a block of any other language has somebody who reads it."""
    for language, text in blocks(page):
        if language in READERS:
            READERS[language](text)
        else:
            assert language in COMMANDS | {""}, f"nobody reads blocks of {language}"


def test_broken_json_is_seen() -> None:
    """Of several values in a block the last one counts too."""
    every_json_value('{"a": 1}\n\n{"b": "…"}\n')
    with pytest.raises(json.JSONDecodeError):
        every_json_value('{"a": 1}\n{"b": }')


# --- Links -------------------------------------------------------------------------------------------------------


def links(page: Path) -> Iterator[str]:
    """Where the page's links lead, those to other sites left out."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not re.match(r"[a-z]+:", target):
            yield target


def anchors(page: Path) -> set[str]:
    """The names that a page's headings have, as the usual forges make them."""
    found: dict[str, int] = {}
    names = set()
    for heading in re.findall(r"^#+ +(.+?) *$", prose(page), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        number = found[slug] = found.get(slug, -1) + 1
        names.add(f"{slug}-{number}" if number else slug)
    return names


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    """To a file that is there, and to a heading that it has."""
    for target in links(page):
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        assert place.is_relative_to(ROOT), f"{target} leads out of the project"
        assert place.exists(), f"{target} is not there"
        assert not anchor or anchor in anchors(place), f"{target}: there is no such heading"


@every_page
def test_every_page_is_linked(page: Path) -> None:
    """Whoever begins at the README comes to each page."""
    met, left = set[Path](), [ROOT / "README.md"]
    while left:
        place = left.pop()
        if place not in met and place.suffix == ".md":
            met.add(place)
            left += [(place.parent / target.partition("#")[0]).resolve() for target in links(place) if target[0] != "#"]
    assert page in met


@every_page
def test_named_files_exist(page: Path) -> None:
    """What the text names as a path of the project is there."""
    for path in re.findall(r"`((?:docs|tests|containers|cador_trio|benchmarks|supply_chain)/[\w./-]+)`", prose(page)):
        assert (ROOT / path).exists(), f"{path} is not there"


# --- Messages ----------------------------------------------------------------------------------------------------


def examples(page: str, heading: str) -> list[Any]:
    """The JSON values of the first block below a heading."""
    text = (ROOT / page).read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2]
    found = next(block["text"] for block in BLOCK.finditer(text) if block["language"] == "json")
    return every_json_value(found)


def first_cells(heading: str) -> set[str]:
    """What stands in backticks in the first column of the tables of that chapter of docs/messages.md."""
    page = (ROOT / "docs" / "messages.md").read_text(encoding="utf-8")
    chapter = page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return {
        name for row in re.findall(r"^\| (`[^|]*) \|", chapter, re.MULTILINE) for name in re.findall(r"`([^`]+)`", row)
    }


def test_message_examples_are_valid() -> None:
    """Those of an output and a status are what the served schemas take, and the same job's."""
    (output,), (status,) = (examples("docs/messages.md", heading) for heading in ("Output", "Status"))
    validator("output").validate(output)
    validator("status").validate(status)
    assert output["mask"] == status["producedKafkaMessages"][0]
    assert output["technicalMetadata"]["taskId"] == status["taskId"]


def test_storage_examples_are_valid() -> None:
    """Every destination may stand in a request, and the reference in a status."""
    for destination in examples("docs/storage.md", "What a request says"):
        technical = {"taskId": "order-42", "outputStorage": destination}
        validator("request").validate({"technicalMetadata": technical})
    (status,) = examples("docs/messages.md", "Status")
    (reference,) = examples("docs/storage.md", "What is stored, and what the message holds")
    validator("status").validate({**status, "producedKafkaMessages": [reference]})


@pytest.mark.parametrize(
    ("heading", "kind"),
    [
        ("Headers of outputs, statuses and tags", "message-headers"),
        ("Dead letter", "dead-letter-headers"),
        ("Status", "status"),
        ("Tag", "tag"),
    ],
)
def test_tables_name_what_is_served(heading: str, kind: str) -> None:
    """The page explains every field and header that the served schema has, and no other."""
    schema = schemas()[kind]
    names = first_cells(heading)
    assert {name.partition(".")[0] for name in names} - {"tag"} == set(schema["properties"]) - {"tag"}
    if kind == "tag":
        inner = {name.partition(".")[2] for name in names if "." in name}
        assert inner == set(schema["$defs"]["Detection"]["properties"])


# --- Errors ------------------------------------------------------------------------------------------------------


def error_classes() -> dict[str, type[CadorError]]:
    found = vars(errors).values()
    return {one.__name__: one for one in found if isinstance(one, type) and issubclass(one, CadorError)}


def test_statuses_are_the_errors() -> None:
    """docs/rest.md explains every HTTP status of our errors and of the listener itself, and no other."""
    rows = re.findall(r"^\| (\d{3}[^|]*) \|", (ROOT / "docs" / "rest.md").read_text(encoding="utf-8"), re.MULTILINE)
    explained = {int(status) for row in rows for status in re.findall(r"\d{3}", row)}
    listener = {400, 431, 501}  # no exchange gets that far; tests/daemon/test_strangers.py has them
    assert explained == listener | {one.http_status for one in error_classes().values() if one is not CadorError}


@every_page
def test_named_errors_exist(page: Path) -> None:
    """What is named as an error's class is one."""
    text = page.read_text(encoding="utf-8")
    rows = "\n".join(re.findall(r"^\| `cador-error-class`.*$", text, re.MULTILINE))
    named = re.findall(r"--error-class (\w+)", text) + re.findall(r"`([A-Z]\w+)`", rows)
    assert set(named) <= set(error_classes())
