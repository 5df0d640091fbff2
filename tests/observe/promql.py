"""What a PromQL expression asks for, held against the metrics that there are."""

from __future__ import annotations

from typing import Any

import promql_parser

from tests.observe.catalogue import OF_PROMETHEUS, TARGET_LABELS, series


def check(expression: str) -> frozenset[str]:
    """Parse it; every metric, label and known value in it exists. The metrics that it asks for."""
    selectors: list[Any] = []
    labels: set[str] = set()

    def visit(node: Any) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            selectors.append(node)
        elif isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            labels.update(node.modifier.labels)
        elif isinstance(node, promql_parser.BinaryExpr) and node.modifier is not None and node.modifier.matching:
            labels.update(node.modifier.matching.labels)
        return True

    promql_parser.walk(promql_parser.parse(expression), visit)
    assert selectors, f"{expression}: asks for nothing"
    for selector in selectors:
        _check_selector(expression, selector)
    known = set(TARGET_LABELS).union(*(labels_of(selector.name) for selector in selectors))
    assert labels <= known, f"{expression}: no such labels: {labels - known}"
    return frozenset(selector.name for selector in selectors)


def labels_of(name: str) -> set[str]:
    """The labels that a series of this name may have."""
    if name == OF_PROMETHEUS:
        return set(TARGET_LABELS)
    described = series()[name]
    return set(described.labels | TARGET_LABELS) | ({"le"} if name.endswith("_bucket") else set())


def _check_selector(expression: str, selector: Any) -> None:
    assert selector.name == OF_PROMETHEUS or selector.name in series(), f"{expression}: no such metric: {selector.name}"
    for matcher in selector.matchers.matchers:
        assert matcher.name in labels_of(selector.name), f"{expression}: no such label: {matcher.name}"
        if selector.name != OF_PROMETHEUS and (known := series()[selector.name].values.get(matcher.name)):
            assert set(matcher.value.split("|")) <= known, f"{expression}: no such value: {matcher.value}"
