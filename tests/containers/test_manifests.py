"""What is shipped for container engines and clusters, held against the code: settings, ports, probes, users, graces.

No engine and no cluster is needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml  # type: ignore[import-untyped]  # it publishes no types

from cador_trio.algorithm.client import LAST_WORDS_SECONDS
from cador_trio.algorithm.transport import CLOSE_ALL_SECONDS
from cador_trio.intake.http.app import create_operators_app
from cador_trio.intake.http.server import CUT_SECONDS, LAST_ANSWERS_SECONDS
from cador_trio.kafka.cluster import verify_properties
from cador_trio.kafka.consumer import CLOSE_SECONDS
from cador_trio.kafka.room import LAST_COMMITS_SECONDS
from cador_trio.kafka.statuses import LAST_SECONDS
from cador_trio.observe.health import STUCK_SECONDS, Health
from cador_trio.observe.metrics import registry_of
from cador_trio.observe.traces import SHUTDOWN_SECONDS
from cador_trio.run_job import SETTLE_SECONDS
from cador_trio.settings import Settings, load_settings, unknown_variables
from cador_trio.spool import REMOVE_SECONDS
from cador_trio.storage.setup import open_store

ROOT: Final = Path(__file__).parents[2]
CONTAINERS: Final = ROOT / "containers"
KUBERNETES: Final = CONTAINERS / "kubernetes"
WORKLOADS: Final = ("deployment.yaml", "statefulset.yaml")

AFTER_GRACE_SECONDS: Final = (
    LAST_COMMITS_SECONDS
    + SETTLE_SECONDS
    + LAST_WORDS_SECONDS
    + CLOSE_SECONDS
    + LAST_ANSWERS_SECONDS
    + CUT_SECONDS
    + LAST_SECONDS
    + REMOVE_SECONDS
    + CLOSE_ALL_SECONDS
    + LAST_ANSWERS_SECONDS  # on the port of probes and metrics
    + CUT_SECONDS
    + SHUTDOWN_SECONDS
)

Document = dict[str, Any]


class _NoDuplicates(yaml.SafeLoader):  # type: ignore[misc]  # untyped, as above
    """A key that is written twice is an error here; PyYAML lets the last one win."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Document:
        keys = [key.value for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"{node.start_mark}: a key is there twice"
        mapping: Document = super().construct_mapping(node, deep)
        return mapping


def documents(path: Path) -> list[Document]:
    return list(yaml.load_all(path.read_text(encoding="utf-8"), _NoDuplicates))


def everything() -> Iterator[Document]:
    for path in sorted(KUBERNETES.glob("*.yaml")):
        yield from documents(path)


def named(kind: str, name: str) -> Document:
    return next(one for one in everything() if (one["kind"], one["metadata"]["name"]) == (kind, name))


def pod_of(file: str) -> Document:
    (workload,) = documents(KUBERNETES / file)
    spec: Document = workload["spec"]["template"]["spec"]
    return spec


def daemon_of(pod: Document) -> Document:
    (container,) = pod["containers"]
    assert isinstance(container, dict)
    return container


def algorithm_of(pod: Document) -> Document:
    (container,) = pod["initContainers"]
    assert isinstance(container, dict)
    return container


def variables_of(pod: Document) -> dict[str, str]:
    """The daemon's environment, as the kubelet would make it in the pod `cador-trio-0`."""
    daemon, found = daemon_of(pod), dict[str, str]()
    for source in daemon["envFrom"]:
        found.update(named("ConfigMap", source["configMapRef"]["name"])["data"])
    for row in daemon.get("env", []):
        text = row["value"] if "value" in row else {"metadata.name": "cador-trio-0"}[field_path(row)]
        found[row["name"]] = re.sub(r"\$\((\w+)\)", lambda match: found[match[1]], text)
    return found


def field_path(row: Document) -> str:
    return str(row["valueFrom"]["fieldRef"]["fieldPath"])


def mounted(pod: Document, folder: Path) -> dict[str, Path]:
    """Write the daemon's ConfigMap and Secret volumes below `folder`: mount path -> where it is."""
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    places = {}
    for mount in daemon_of(pod)["volumeMounts"]:
        volume = volumes[mount["name"]]
        place = places[mount["mountPath"]] = folder / mount["name"]
        place.mkdir()
        for name, text in contents(volume).items():
            (place / name).write_text(text, encoding="utf-8")
    for place in places.values():
        for file in place.iterdir():
            file.write_text(moved(file.read_text(encoding="utf-8"), places), encoding="utf-8")
    return places


def contents(volume: Document) -> dict[str, str]:
    if "configMap" in volume:
        return dict(named("ConfigMap", volume["configMap"]["name"])["data"])
    if "secret" in volume:
        return dict(named("Secret", volume["secret"]["secretName"])["stringData"])
    return {}


def moved(text: str, places: dict[str, Path]) -> str:
    """The text with the pod's paths replaced by ours."""
    paths = "|".join(re.escape(path) for path in places)
    return re.sub(rf"({paths})/", lambda match: f"{places[match[1]]}/", text)


def settings_of(pod: Document, folder: Path) -> Settings:
    places = mounted(pod, folder)
    return load_settings({name: moved(value, places) for name, value in variables_of(pod).items()})


@pytest.fixture(params=WORKLOADS)
def pod(request: pytest.FixtureRequest) -> Document:
    return pod_of(request.param)


# --- Kubernetes --------------------------------------------------------------------------------------------------


def test_settings_hold(pod: Document, tmp_path: Path) -> None:
    """The daemon would start with what the manifests give it: every name known, every value and file good."""
    assert unknown_variables(variables_of(pod)) == []
    known = {row.alias for row in Settings.model_fields.values()}
    assert {name.removesuffix("_FILE") for name in variables_of(pod)} <= known
    settings = settings_of(pod, tmp_path)
    open_store(settings)
    if settings.has_kafka:
        verify_properties(settings)


def test_secrets_are_files(pod: Document) -> None:
    """No secret becomes an environment variable, and only the group that the pod runs in may read the files."""
    assert all("secretRef" not in source for source in daemon_of(pod)["envFrom"])
    assert all("secretKeyRef" not in row.get("valueFrom", {}) for row in daemon_of(pod).get("env", []))
    modes = {volume["secret"]["defaultMode"] for volume in pod["volumes"] if "secret" in volume}
    assert modes == {0o440}
    assert pod["securityContext"]["fsGroup"] == daemon_of(pod)["securityContext"]["runAsGroup"]


def test_only_the_stateful_set_takes_jobs_from_kafka(tmp_path: Path) -> None:
    """Its pods' names are their instance ids and lead to them; the Deployment serves REST alone."""
    folders = [tmp_path / file for file in WORKLOADS]
    for folder in folders:
        folder.mkdir()
    deployed, stateful = (settings_of(pod_of(file), folder) for file, folder in zip(WORKLOADS, folders, strict=True))
    assert not deployed.has_kafka
    assert (stateful.has_kafka, stateful.instance_id) == (True, "cador-trio-0")
    (workload,) = documents(KUBERNETES / "statefulset.yaml")
    service = named("Service", workload["spec"]["serviceName"])
    assert service["spec"]["clusterIP"] == "None"
    port = service["spec"]["ports"][0]["port"]
    assert stateful.public_url == f"http://cador-trio-0.{service['metadata']['name']}:{port}"


def test_the_two_pods_are_one() -> None:
    """Deployment and StatefulSet differ in what Kafka needs, and in nothing else."""
    deployed, stateful = (pod_of(file) for file in WORKLOADS)
    kafka = daemon_of(stateful)
    kafka.pop("env")
    kafka["envFrom"] = [row for row in kafka["envFrom"] if "kafka" not in row["configMapRef"]["name"]]
    kafka["volumeMounts"] = [row for row in kafka["volumeMounts"] if "kafka" not in row["name"]]
    stateful["volumes"] = [row for row in stateful["volumes"] if "kafka" not in row["name"]]
    assert deployed == stateful


def test_ports_meet(pod: Document, tmp_path: Path) -> None:
    """The daemon listens where probes, Services and the policy look for it, and looks for the algorithm where it is."""
    settings = settings_of(pod, tmp_path)
    ports = {port["name"]: port["containerPort"] for port in daemon_of(pod)["ports"]}
    assert ports == {"http": settings.port, "metrics": settings.metrics_port}
    (algorithm,) = algorithm_of(pod)["ports"]
    assert settings.processing_server == f"http://127.0.0.1:{algorithm['containerPort']}"
    services = [one for one in everything() if one["kind"] == "Service"]
    assert all(port["targetPort"] == port["name"] for service in services for port in service["spec"]["ports"])
    assert {port["name"] for service in services for port in service["spec"]["ports"]} == ports.keys()
    for_callers, for_prometheus = named("NetworkPolicy", "cador-trio")["spec"]["ingress"]
    assert for_callers["ports"] == [{"protocol": "TCP", "port": settings.port}]
    assert for_prometheus["ports"] == [{"protocol": "TCP", "port": settings.metrics_port}]


def test_policy_lets_the_configured_neighbours_through() -> None:
    """Egress knows the brokers' namespace and port, and TLS to object stores, but no link-local address."""
    egress = named("NetworkPolicy", "cador-trio")["spec"]["egress"]
    brokers = named("ConfigMap", "cador-trio-kafka")["data"]["KAFKA_BROKERS_REQUEST"]
    host, _, port = brokers.partition(":")
    to_kafka = next(rule for rule in egress if rule["ports"] == [{"protocol": "TCP", "port": int(port)}])
    labels = to_kafka["to"][0]["namespaceSelector"]["matchLabels"]
    assert labels["kubernetes.io/metadata.name"] == host.split(".")[1]
    block = next(peer["ipBlock"] for rule in egress for peer in rule["to"] if "ipBlock" in peer)
    assert "169.254.0.0/16" in block["except"]


def test_labels_meet() -> None:
    """Whatever selects pods selects these, and these alone."""
    label = {"app.kubernetes.io/name": "cador-trio"}
    for document in everything():
        spec = document.get("spec", {})
        assert document["metadata"]["labels"] == label
        if document["kind"] in {"Deployment", "StatefulSet"}:
            assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"] == label
        if document["kind"] == "PodDisruptionBudget":
            assert spec["selector"]["matchLabels"] == label
        if document["kind"] == "NetworkPolicy":
            assert spec["podSelector"]["matchLabels"] == label
        if document["kind"] == "Service":
            assert spec["selector"] == label


def test_probes_ask_what_is_served(pod: Document) -> None:
    """Startup and liveness ask /livez, readiness /readyz, of the port that serves those without token and TLS."""
    daemon = daemon_of(pod)
    paths = [daemon[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "liveness", "readiness")]
    assert paths == ["/livez", "/livez", "/readyz"]
    served = create_operators_app(Health(lambda: 0.0), lambda: None, registry_of()).url_map
    assert {*paths, "/metrics"} == {rule.rule for rule in served.iter_rules()}
    asked = [daemon[f"{probe}Probe"]["httpGet"] for probe in ("startup", "liveness", "readiness")]
    assert all(one.keys() == {"path", "port"} and one["port"] == "metrics" for one in asked)


def test_liveness_is_patient(pod: Document) -> None:
    """One slow answer kills nobody: liveness waits longer than what the daemon itself calls stuck."""
    probe = daemon_of(pod)["livenessProbe"]
    assert probe["failureThreshold"] > 1
    assert probe["periodSeconds"] * probe["failureThreshold"] > STUCK_SECONDS


def test_what_hangs_is_not_waited_for(pod: Document) -> None:
    """It would use up the whole grace of the pod, since it ends by nothing but SIGKILL."""
    assert daemon_of(pod)["livenessProbe"]["terminationGracePeriodSeconds"] < pod["terminationGracePeriodSeconds"] / 2


def test_algorithm_is_first_up_and_last_down(pod: Document) -> None:
    """It is a native sidecar, whose start the daemon waits for; being busy makes it neither unready nor restarted."""
    algorithm = algorithm_of(pod)
    assert algorithm["restartPolicy"] == "Always"
    assert algorithm["startupProbe"]["httpGet"] == {"path": "/api/v1/health", "port": "algorithm"}
    assert not {"livenessProbe", "readinessProbe"} & algorithm.keys()


def test_graces_add_up(pod: Document, tmp_path: Path) -> None:
    """preStop, the running jobs' grace and all that may come after it fit into the pod's, with some left over."""
    needed = daemon_of(pod)["lifecycle"]["preStop"]["sleep"]["seconds"]
    needed += settings_of(pod, tmp_path).shutdown_grace_seconds + AFTER_GRACE_SECONDS
    assert needed + 10 <= pod["terminationGracePeriodSeconds"]


def test_page_has_the_true_numbers() -> None:
    """docs/kubernetes.md names every bound after the grace, and their sum."""
    page = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (\w[^|]*?) \| `?(\d+)`? \|", page, re.MULTILINE))
    assert [int(seconds) for seconds in rows.values()] == [
        LAST_COMMITS_SECONDS,
        SETTLE_SECONDS,
        LAST_WORDS_SECONDS,
        CLOSE_SECONDS,
        LAST_ANSWERS_SECONDS + CUT_SECONDS,
        LAST_SECONDS,
        CLOSE_ALL_SECONDS + REMOVE_SECONDS,
        LAST_ANSWERS_SECONDS + CUT_SECONDS,
        SHUTDOWN_SECONDS,
        AFTER_GRACE_SECONDS,
    ]


def test_nobody_is_root(pod: Document) -> None:
    """Every container has a number for a user, no privileges to gain, and a root file system that is read-only."""
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in (*pod["containers"], *pod["initContainers"]):
        security = container["securityContext"]
        assert security["runAsUser"] > 0
        assert security["runAsGroup"] > 0
        assert (security["allowPrivilegeEscalation"], security["readOnlyRootFilesystem"]) == (False, True)
        assert security["capabilities"] == {"drop": ["ALL"]}
    assert (pod["automountServiceAccountToken"], pod["enableServiceLinks"]) == (False, False)


def test_spool_fits_its_volume(pod: Document, tmp_path: Path) -> None:
    """The daemon refuses before the kubelet evicts: its budget is below the volume's limit, and /tmp is that volume."""
    settings = settings_of(pod, tmp_path)
    (mount,) = (mount for mount in daemon_of(pod)["volumeMounts"] if mount["mountPath"] == "/tmp")
    (volume,) = (volume for volume in pod["volumes"] if volume["name"] == mount["name"])
    gibibytes = int(volume["emptyDir"]["sizeLimit"].removesuffix("Gi"))
    assert settings.spool_dir is None
    assert settings.spool_bytes < gibibytes * 1024**3


# --- Compose -----------------------------------------------------------------------------------------------------


@pytest.fixture
def compose() -> Document:
    (document,) = documents(CONTAINERS / "compose.yaml")
    return document


def test_compose_settings_hold(compose: Document, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon would start with what the compose file gives it, and finds every topic that it is told of."""
    cador = compose["services"]["cador"]
    profiles = tmp_path / "profiles.toml"
    profiles.write_text(compose["configs"]["profiles"]["content"], encoding="utf-8")
    environment = {**cador["environment"], "CADOR_STORAGE_PROFILES": str(profiles)}
    for name in ("STORE_KEY", "STORE_SECRET"):
        monkeypatch.setenv(name, environment[name])
    assert unknown_variables(environment) == []
    settings = load_settings(environment)
    open_store(settings)
    verify_properties(settings)
    (script,) = compose["services"]["topics"]["command"]
    topics = {value for name, value in environment.items() if name.endswith("_TOPIC")}
    assert topics == set(re.findall(r"for topic in (.*?);", script)[0].split())


def test_compose_neighbours_are_services(compose: Document) -> None:
    """Hosts in the daemon's settings are services that share a network with it, at their ports."""
    services = compose["services"]
    environment = services["cador"]["environment"]
    assert environment["PROCESSING_SERVER"] == "http://algorithm:8080"
    assert set(services["algorithm"]["networks"]) <= set(services["cador"]["networks"])
    assert environment["KAFKA_BROKERS_REQUEST"] == "kafka:9092"
    assert "PLAINTEXT://kafka:9092" in services["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    assert environment["CADOR_STORAGE_ENDPOINTS"] == "store:8333"
    assert services["cador"]["ports"] == ["127.0.0.1:9090:9090"]


def test_compose_store_knows_the_key(compose: Document) -> None:
    """The store's one identity is the profile's, and its bucket the profile's."""
    identities = yaml.safe_load(compose["configs"]["identities"]["content"])["identities"]
    environment = compose["services"]["cador"]["environment"]
    keys = {"accessKey": environment["STORE_KEY"], "secretKey": environment["STORE_SECRET"]}
    assert [identity["credentials"] for identity in identities] == [[keys]]
    assert f"-bucket={environment['CADOR_STORAGE_BUCKETS']}" in compose["services"]["store"]["command"]


def test_compose_gives_enough_time(compose: Document) -> None:
    """The engine's patience covers the daemon's grace and all that may come after it."""
    cador = compose["services"]["cador"]
    grace = float(cador["environment"]["CADOR_SHUTDOWN_GRACE_SECONDS"]) + AFTER_GRACE_SECONDS
    assert grace <= int(cador["stop_grace_period"].removesuffix("s"))


def test_compose_daemon_is_not_root(compose: Document) -> None:
    """It runs as the image's user, without privileges, on a read-only root."""
    cador = compose["services"]["cador"]
    assert f"USER {cador['user']}" in (CONTAINERS / "Containerfile").read_text(encoding="utf-8")
    assert (cador["read_only"], cador["cap_drop"]) == (True, ["ALL"])
    assert cador["security_opt"] == ["no-new-privileges:true"]


# --- Containerfiles ----------------------------------------------------------------------------------------------


def instructions() -> list[str]:
    text = (CONTAINERS / "Containerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_image_user_is_the_manifests(pod: Document) -> None:
    """The image says the number that the manifests say, after its last instruction that needs root."""
    security = daemon_of(pod)["securityContext"]
    assert f"USER {security['runAsUser']}:{security['runAsGroup']}" in instructions()
    last_stage = instructions()[max(i for i, line in enumerate(instructions()) if line.startswith("FROM")) :]
    assert not any(line.startswith("RUN") for line in last_stage)


def test_image_holds_what_the_lock_pins() -> None:
    """Dependencies come by hash, the wheel brings none of its own, and pip is not in the daemon's environment."""
    runs = [line for line in instructions() if line.startswith("RUN")]
    assert "--without-pip" in runs[0]
    assert "--require-hashes" in runs[1]
    assert {"--no-deps", "--no-index"} <= set(runs[2].split())


def test_image_needs_no_shell() -> None:
    """The daemon is process 1 and gets its signals itself."""
    assert instructions()[-1] == 'ENTRYPOINT ["/opt/cador-trio/bin/cador-trio"]'
    assert f"EXPOSE {Settings.model_fields['port'].default}" in instructions()
