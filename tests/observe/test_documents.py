"""The page on metrics, the dashboard, the alert rules and the scaling rule, held against the metrics that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

import pytest
import yaml  # type: ignore[import-untyped]  # it publishes no types

from tests.observe.catalogue import OF_PROMETHEUS, TARGET_LABELS, catalogue
from tests.observe.promql import check, labels_of

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = ROOT / "docs" / "metrics.md"
DASHBOARD: Final = ROOT / "containers" / "grafana" / "cador-trio.json"
ALERTS: Final = ROOT / "containers" / "prometheus" / "alerts.yaml"

_ROW: Final = re.compile(r"^\| `([a-z_]+)` \| (\w+) \|([^|]*)\|([^|]+)\|([^|]*)\|$", re.MULTILINE)


def rows() -> dict[str, tuple[str, frozenset[str]]]:
    """The page's tables: name -> type and labels."""
    found = _ROW.findall(PAGE.read_text(encoding="utf-8"))
    assert len({name for name, *_ in found}) == len(found), "a metric is explained twice"
    return {name: (kind, frozenset(re.findall(r"`(\w+)`", labels))) for name, kind, labels, *_ in found}


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    return list(group["rules"])


def panels() -> list[dict[str, Any]]:
    return list(json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"])


def targets() -> list[tuple[str, str]]:
    """Expression and legend of each line; Grafana's own interval replaced by one that PromQL knows."""
    return [
        (target["expr"].replace("$__rate_interval", "5m"), target["legendFormat"])
        for panel in panels()
        for target in panel.get("targets", ())
    ]


def anchors() -> set[str]:
    headings = re.findall(r"^#+ (.+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}


# --- The page ----------------------------------------------------------------------------------------------------


def test_page_explains_what_there_is() -> None:
    """Every metric has its row, every row its metric, with the same type and labels."""
    assert rows() == {name: (one.kind, one.labels) for name, one in catalogue().items()}


def test_page_leads_somewhere() -> None:
    """Every link within the page has its section."""
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE.read_text(encoding="utf-8"))) <= anchors()


def test_page_asks_for_what_there_is() -> None:
    """The expressions that it recommends can be evaluated."""
    text = PAGE.read_text(encoding="utf-8")
    expressions = [code for code in re.findall(r"`([^`\n]+)`", text) if "(" in code and "cador_" in code]
    assert len(expressions) > 1
    for expression in expressions:
        check(expression)


@pytest.mark.parametrize("name", [name for name in catalogue() if name.startswith("cador_")])
def test_names_follow_the_conventions(name: str) -> None:
    """Base units, `_total` for counters and nothing else, and a help text that ends without a full stop."""
    one = catalogue()[name]
    assert name.endswith("_total") == (one.kind == "counter")
    assert not re.search(r"_(ms|milliseconds|minutes|mb|kb|percent)(_|$)", name)
    assert one.text
    assert not one.text.endswith(".")
    assert not one.labels & TARGET_LABELS, "Prometheus would rename it"


# --- Alert rules -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_alert_can_fire(rule: dict[str, Any]) -> None:
    """Its expression asks for what exists; it says how long, how bad, what is wrong, and where to read on."""
    assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
    asked = check(rule["expr"])
    assert re.fullmatch(r"\d+m", rule["for"])
    assert rule["labels"]["severity"] in {"critical", "warning"}
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    assert (ROOT / page) == PAGE
    assert anchor in anchors()
    shown = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
    assert shown <= set().union(*(labels_of(name) for name in asked))


def test_alerts_have_names_of_their_own() -> None:
    """Two rules of one name could not be told apart; every metric of health has one that watches it."""
    assert len({rule["alert"] for rule in rules()}) == len(rules())
    watched = frozenset().union(*(check(rule["expr"]) for rule in rules()))
    assert {"cador_ready", "cador_algorithm_up", "cador_kafka_up", "cador_dead_letters_total", OF_PROMETHEUS} <= watched


# --- The dashboard -----------------------------------------------------------------------------------------------


def test_dashboard_asks_for_what_there_is() -> None:
    """Every expression can be evaluated, and every legend names labels that are there."""
    for expression, legend in targets():
        asked = check(expression)
        shown = set(re.findall(r"{{(\w+)}}", legend))
        assert shown <= set().union(*(labels_of(name) for name in asked)), expression


def test_dashboard_shows_all_of_ours() -> None:
    """Each metric of the daemon's is in some panel."""
    asked = frozenset().union(*(check(expression) for expression, _ in targets()))
    ours = {name: one.series for name, one in catalogue().items() if name.startswith("cador_")}
    assert {name for name, names in ours.items() if not names & asked} == set()


def test_dashboard_can_be_imported() -> None:
    """Each panel has an id and a place of its own, and its data from the data source that is chosen."""
    document = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    variables = {variable["name"]: variable for variable in document["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    for name in ("job", "instance"):
        asked = re.fullmatch(rf"label_values\(([^,]+), {name}\)", variables[name]["definition"])
        assert asked is not None
        check(asked[1])
    assert len({panel["id"] for panel in panels()}) == len(panels())
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
        for target in panel.get("targets", ()):
            assert target["datasource"]["uid"] == panel["datasource"]["uid"] == "${datasource}"
    used = set(re.findall(r"\$(\w+)", " ".join(expression for expression, _ in targets())))
    assert used <= variables.keys()


# --- What clusters read ------------------------------------------------------------------------------------------


def manifest(name: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((ROOT / "containers" / "kubernetes" / name).read_text(encoding="utf-8"))
    return document


def test_scaling_asks_for_what_there_is() -> None:
    """The query of each trigger can be evaluated, for the workload that takes jobs from Kafka."""
    spec = manifest("scaledobject.yaml")["spec"]
    (trigger,) = spec["triggers"]
    assert check(trigger["metadata"]["query"]) == {"cador_consumer_lag"}
    workload = manifest("statefulset.yaml")
    target = spec["scaleTargetRef"]
    assert (target["apiVersion"], target["kind"]) == (workload["apiVersion"], workload["kind"])
    assert target["name"] == workload["metadata"]["name"]
    assert 1 <= spec["minReplicaCount"] < spec["maxReplicaCount"]


def test_every_pod_is_scraped_once() -> None:
    """By a port that the Service has, under the job that rules know."""
    spec = manifest("servicemonitor.yaml")["spec"]
    services = yaml.safe_load_all((ROOT / "containers" / "kubernetes" / "service.yaml").read_text(encoding="utf-8"))
    by_name = {service["metadata"]["name"]: service for service in services}
    (endpoint,) = spec["endpoints"]
    keep, job = endpoint["relabelings"]
    assert keep["action"] == "keep"
    service = by_name[keep["regex"]]
    assert spec["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert any(f'job="{job["replacement"]}"' in rule["expr"] for rule in rules())
