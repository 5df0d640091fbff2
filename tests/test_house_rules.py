"""The rules of docs/architecture.md, held by walking the imports of every module."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

import pytest

PACKAGE: Final = Path(__file__).parents[1] / "cador_trio"
ROOMS: Final = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}

# The modules that introduce rooms to each other, and so may know all of them.
INTRODUCERS: Final = {"daemon", "check", "cli", "__main__"}
# Everything may report there what goes on in it; this one imports no other.
OPEN_ROOM: Final = "observe"
# What talks to a daemon as any user would, and starts one for that. It knows what Kafka's
# messages and clients are made of.
OUTSIDE_ROOM: Final = "commands"
OPEN_TO_OUTSIDE: Final = "kafka"

# Where a library of the edges may be imported: a module, or a whole room. Its exceptions end there.
LIBRARIES: Final = {
    "httpx": {"algorithm.transport", "commands"},
    "libcloud": {"storage"},
    "confluent_kafka": {"kafka", "commands"},
    "quart": {"intake.http"},
    "quart_trio": {"intake.http"},
    "werkzeug": {"intake.http"},
    "h11": {"intake.http"},
    "hypercorn": {"intake.http"},
    "swagger_ui_bundle": {"intake.http"},
    "jsonschema_rs": {"algorithm.schema"},
    "shapely": {"results", "commands"},
    "pyproj": {"results", "commands"},
    "numpy": {"results"},
    "click": {"cli"},
    "dotenv": {"settings"},
    "pydantic": {"settings", "settings_page", "intake.http.app", "kafka.shapes", "kafka.asyncapi"},
    "typing_extensions": {"kafka.shapes"},
    "trustme": {"self_signed"},
    "opentelemetry": {"observe.traces"},
    "outcome": {"capacity"},
    "prometheus_client": {"observe.metrics"},
    "PIL": {"commands"},
    "rich": {"commands"},
}
ANYWHERE_IMPURE: Final = {"trio", "structlog"}

# Tested without an event loop: no trio, no library but those that compute, and only modules of which that is true too.
PURE: Final = {
    "errors",
    "job",
    "json_text",
    "document",
    "settings",
    "settings_page",
    "algorithm.dialect",
    "algorithm.schema",
    "algorithm.sniff",
    "intake.request",
    "kafka.asyncapi",
    "kafka.dead_letters",
    "kafka.effects",
    "kafka.ledger",
    "kafka.messages",
    "kafka.shapes",
    "intake.http.negotiation",
    "observe.health",
    "observe.loop_lag",
    "storage.destinations",
    "storage.endpoints",
    "storage.failures",
    # These read small files, and are loopless otherwise.
    "storage.credentials",
    "storage.profiles",
    "kafka.properties",
}
COMPUTING: Final = {"jsonschema_rs", "numpy", "shapely", "pyproj", "pydantic", "typing_extensions", "dotenv"}


def modules() -> list[str]:
    """Every module by its name below the package; a package by its own."""
    paths = sorted(PACKAGE.rglob("*.py"))
    names = (".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in paths)
    return [name.removesuffix(".__init__") for name in names if name != "__init__"]


def path_of(module: str) -> Path:
    base = PACKAGE.joinpath(*module.split("."))
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(path_of(module).read_text(encoding="utf-8"))


def imports_of(module: str) -> Iterator[str]:
    """Everything it imports by its full name, inside functions too."""
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours_in(module: str) -> set[str]:
    """The modules of ours that it imports, below the package."""
    known = set(modules())
    names = {name.removeprefix("cador_trio.") for name in imports_of(module) if name.startswith("cador_trio.")}
    return names & known


def libraries_in(module: str) -> set[str]:
    tops = {name.partition(".")[0] for name in imports_of(module)}
    return {top for top in tops if top not in sys.stdlib_module_names and top != "cador_trio"}


def room_of(module: str) -> str:
    """Its room; empty for the trunk."""
    top = module.partition(".")[0]
    return top if top in ROOMS else ""


def is_within(module: str, places: set[str]) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in places)


def is_pure(module: str) -> bool:
    return module in PURE or room_of(module) == "results"


def test_the_walk_sees_the_house() -> None:
    """A walk that finds nothing would hold every rule."""
    assert {"run_job", "intake.http.door", "results", "storage.store"} <= set(modules())
    assert {"algorithm", "commands", "intake", "observe", "results", "storage"} <= ROOMS
    assert "httpx" in libraries_in("algorithm.transport")
    assert "run_job" in ours_in("daemon")
    assert "observe.logs" in ours_in("cli")  # imported inside a function


@pytest.mark.parametrize("module", modules())
def test_data_walks_one_way(module: str) -> None:
    """Rooms know the trunk and themselves, all know where to report, the trunk no other; only introducers know all."""
    if module in INTRODUCERS:
        return
    room = room_of(module)
    for imported in ours_in(module):
        to = room_of(imported)
        if to:
            is_opened = room == OUTSIDE_ROOM and to == OPEN_TO_OUTSIDE and (is_pure(imported) or imported == to)
            is_allowed = to in {room, OPEN_ROOM} or is_opened
        else:
            is_allowed = imported not in INTRODUCERS or (room == OUTSIDE_ROOM and imported == "daemon")
        assert is_allowed, f"{module} must not import {imported}"


@pytest.mark.parametrize("module", modules())
def test_one_library_one_room(module: str) -> None:
    """Each library of the edges has its place; a new one gets a line in the table."""
    for library in libraries_in(module) - ANYWHERE_IMPURE:
        assert library in LIBRARIES, f"{module} imports {library}, which has no place yet"
        assert is_within(module, LIBRARIES[library]), f"{module} must not import {library}"


@pytest.mark.parametrize("module", [module for module in modules() if is_pure(module)])
def test_pure_modules_are_pure(module: str) -> None:
    """No event loop, no edge, and nothing that has them."""
    assert libraries_in(module) <= COMPUTING
    for imported in ours_in(module):
        assert is_pure(imported) or imported == room_of(module), f"{module} is pure, {imported} is not"


def test_what_calls_itself_pure_is_held_to_it() -> None:
    """The word at the head of a module is a promise."""
    claiming = {
        module
        for module in modules()
        if re.search(r"(?m)^Pure\b", ast.get_docstring(tree_of(module)) or "") and room_of(module) != OUTSIDE_ROOM
    }
    assert {module for module in claiming if not is_pure(module)} == set()


def test_the_table_names_what_exists() -> None:
    """A rule about a module that is gone holds nothing."""
    known = set(modules())
    assert known >= PURE
    assert known >= INTRODUCERS
    for places in LIBRARIES.values():
        assert known >= places


@pytest.mark.parametrize("module", modules())
def test_every_module_says_what_lives_there(module: str) -> None:
    """A sentence at its head."""
    docstring = ast.get_docstring(tree_of(module))
    assert docstring
    assert docstring.partition("\n")[0].rstrip().endswith((".", ":")) or "\n" in docstring


@pytest.mark.parametrize("module", modules())
def test_nothing_is_asserted_in_production(module: str) -> None:
    """`assert` vanishes under -O; where it stands for a type checker, the line says so."""
    lines = path_of(module).read_text(encoding="utf-8").splitlines()
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Assert):
            assert "noqa: S101 - " in lines[node.lineno - 1], f"{module}, line {node.lineno}"
