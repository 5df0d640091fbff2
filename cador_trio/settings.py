"""Every setting: its variable, type, unit, default and one sentence; checked completely before anything starts.

The one table that the daemon, `cador-trio check` and docs/settings.md share. Nothing here opens a connection. Values
come from the mapping that `load_settings` is given (the process environment, over an env file), never from anywhere
else, so that a test or the demo builds the same object with plain arguments: `Settings(port=0)`.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo

from cador_trio.errors import SettingsError

MIB = 1024**2
GIB = 1024**3

# What Kubernetes puts into CADOR_PORT when a Service is called "cador" and service links are on.
_SERVICE_LINK = re.compile(r"^tcp://[\d.:a-fA-F\[\]]+$")
_BROKER = re.compile(
    r"(?:(?:PLAINTEXT|SSL|SASL_PLAINTEXT|SASL_SSL)://)?(?:\[[\da-fA-F:.%]+\]|[^\s,/@:\[\]]+)(?::\d{1,5})?"
)
_TOPIC = re.compile(r"[a-zA-Z0-9._-]{1,249}")
_KAFKA_IS_OFF = "has no effect without KAFKA_BROKERS_REQUEST, which this version needs for any use of Kafka"


def _split(separator: str) -> BeforeValidator:
    def split(value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(separator) if part.strip())
        return value

    return BeforeValidator(split)


def _http_url(value: object) -> object:
    if not isinstance(value, str):
        return value
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("must be an http:// or https:// URL with a host")
    if parts.username or parts.password:
        raise ValueError("must not hold a user name or password")
    if parts.query or parts.fragment:
        raise ValueError("must end with its path: no query, no fragment")
    try:
        _ = parts.port
    except ValueError:  # its text quotes what may be half a password
        raise ValueError("has a port that is no number") from None
    return value.rstrip("/")


def _no_service_link(value: object) -> object:
    if isinstance(value, str) and _SERVICE_LINK.match(value):
        raise ValueError(
            "is a Kubernetes service link, not a port: set enableServiceLinks to false or rename the Service"
        )
    return value


def _brokers(value: object) -> object:
    if not isinstance(value, str):
        return value
    brokers = [part.strip() for part in value.split(",") if part.strip()]
    if not brokers or not all(_BROKER.fullmatch(broker) for broker in brokers):
        raise ValueError("must be host:port, or several separated by commas")  # unquoted: it may hold a password
    return ",".join(brokers)


def _topic(value: object) -> object:
    if isinstance(value, str) and (not _TOPIC.fullmatch(value) or value in {".", ".."}):
        raise ValueError("must be a topic's name: at most 249 letters, digits, dots, underscores and hyphens")
    return value


Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Bytes = Annotated[ByteSize, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
HttpUrl = Annotated[str, BeforeValidator(_http_url)]
Brokers = Annotated[str, BeforeValidator(_brokers)]
Topic = Annotated[str, BeforeValidator(_topic)]
File = Path


def setting(variable: str, default: Any, meaning: str, *, unit: str = "") -> Any:
    """A row of the table: the variable's name, its default (None: as the meaning says), and its meaning."""
    return Field(default, alias=variable, description=meaning, json_schema_extra={"unit": unit} if unit else None)


class Settings(BaseModel):
    """What the operator decided, complete and consistent. Immutable; secrets are masked in `repr`."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_by_name=True, validate_by_alias=True)

    # --- the two ends
    host: str = setting("CADOR_HOST", "0.0.0.0", "address to listen on")  # noqa: S104 - a pod's probes come from outside
    port: Annotated[int, BeforeValidator(_no_service_link), Field(ge=0, le=65_535)] = setting(
        "CADOR_PORT", 9090, "port to listen on; 0 takes a free one and logs it"
    )
    metrics_port: Annotated[int, BeforeValidator(_no_service_link), Field(ge=0, le=65_535)] | None = setting(
        "CADOR_METRICS_PORT",
        None,
        "port of its own for `/metrics`, and for `/livez` and `/readyz` besides: plain HTTP, without token or client "
        "certificate; 0 takes a free one and logs it; unset: all three are on CADOR_PORT",
    )
    max_connections: Count = setting(
        "CADOR_MAX_CONNECTIONS",
        1000,
        "connections to CADOR_PORT at once, and never more than half of the files that the process may open; "
        "further ones are closed",
    )
    processing_server: HttpUrl = setting(
        "PROCESSING_SERVER", "http://127.0.0.1:8080", "the algorithm; `/api/v1` is added when the path is empty"
    )
    public_url: HttpUrl | None = setting(
        "CADOR_PUBLIC_URL", None, "base of the links that we give out; unset: taken from each request"
    )
    use_ssl: bool = setting("CADOR_USE_SSL", False, "serve HTTPS with the operator's certificate")
    ssl_cert: File | None = setting("CADOR_SSL_CERT", None, "certificate chain, PEM; read again when it changes")
    ssl_key: File | None = setting("CADOR_SSL_KEY", None, "private key of the certificate, PEM")
    ssl_client_ca: File | None = setting(
        "CADOR_SSL_CLIENT_CA", None, "CA bundle for client certificates, PEM; turns on mutual TLS"
    )
    self_signed: bool = setting(
        "CADOR_SELF_SIGNED", False, "with CADOR_USE_SSL and no certificate: make one at start, for trials only"
    )
    algorithm_ca: File | None = setting(
        "CADOR_ALGORITHM_CA", None, "CA bundle for PROCESSING_SERVER, PEM; unset: the system's"
    )
    api_token: SecretStr | None = setting(
        "CADOR_API_TOKEN", None, "bearer token that callers of the API must show (probes and metrics excepted)"
    )
    # --- capacity and time
    max_concurrent_jobs: Count = setting(
        "CADOR_MAX_CONCURRENT_JOBS", 1, "jobs at the algorithm at once, over all doors"
    )
    max_unfinished_jobs: Count | None = setting(
        "CADOR_MAX_UNFINISHED_JOBS",
        None,
        "jobs dispatched and not yet settled; unset: 4 x CADOR_MAX_CONCURRENT_JOBS, at least 8",
    )
    http_share: Annotated[float, Field(ge=0, le=1)] = setting(
        "CADOR_HTTP_SHARE", 0.25, "freed slots go to waiting HTTP jobs first, up to this share of all slots"
    )
    max_waiting_jobs: Annotated[int, Field(ge=0)] = setting(
        "CADOR_MAX_WAITING_JOBS", 16, "HTTP jobs waiting for capacity; beyond it 503 with Retry-After"
    )
    max_waiting_bytes: Bytes = setting(
        "CADOR_MAX_WAITING_BYTES", 256 * MIB, "bodies of the waiting HTTP jobs together", unit="bytes"
    )
    job_timeout_seconds: Seconds = setting(
        "CADOR_JOB_TIMEOUT_SECONDS",
        1000.0,
        "deadline of the algorithm stage; stands still while the algorithm is unreachable",
        unit="seconds",
    )
    store_timeout_seconds: Seconds = setting(
        "CADOR_STORE_TIMEOUT_SECONDS", 600.0, "deadline of the store step, its retries included", unit="seconds"
    )
    store_connect_timeout_seconds: Seconds = setting(
        "CADOR_STORE_CONNECT_TIMEOUT_SECONDS",
        10.0,
        "how long an object store may take to be resolved, and to be connected",
        unit="seconds",
    )
    store_send_timeout_seconds: Seconds = setting(
        "CADOR_STORE_SEND_TIMEOUT_SECONDS", 60.0, "how long an object store may take no bytes", unit="seconds"
    )
    store_receive_timeout_seconds: Seconds = setting(
        "CADOR_STORE_RECEIVE_TIMEOUT_SECONDS", 60.0, "how long an object store may say nothing", unit="seconds"
    )
    shutdown_grace_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = setting(
        "CADOR_SHUTDOWN_GRACE_SECONDS", 20.0, "what running jobs get on SIGTERM", unit="seconds"
    )
    max_attempts: Count = setting("CADOR_MAX_ATTEMPTS", 3, "tries at the algorithm for a failure that a retry can cure")
    # --- sizes
    max_body_bytes: Bytes = setting("CADOR_MAX_BODY_BYTES", 100 * MIB, "request body limit", unit="bytes")
    spool_dir: Path | None = setting(
        "CADOR_SPOOL_DIR", None, "where results are spooled; unset: the system's temporary folder"
    )
    spool_bytes: Bytes = setting("CADOR_SPOOL_BYTES", 10 * GIB, "how much is spooled at once", unit="bytes")
    max_answer_bytes: Bytes = setting(
        "CADOR_MAX_ANSWER_BYTES", 256 * MIB, "largest JSON answer, base64 images inside it included", unit="bytes"
    )
    max_result_bytes: Bytes = setting("CADOR_MAX_RESULT_BYTES", 10 * GIB, "largest streamed result", unit="bytes")
    job_history: Annotated[int, Field(ge=0)] = setting(
        "CADOR_JOB_HISTORY", 1000, "finished jobs kept for status and results"
    )
    job_history_seconds: Seconds = setting(
        "CADOR_JOB_HISTORY_SECONDS", 3600.0, "how long finished jobs are kept", unit="seconds"
    )
    job_history_bytes: Bytes = setting(
        "CADOR_JOB_HISTORY_BYTES",
        GIB,
        "results of finished jobs kept, together; the newest stay whatever their size",
        unit="bytes",
    )
    # --- results
    posix_roots: Annotated[tuple[Path, ...], _split(":")] = setting(
        "CADOR_POSIX_ROOTS", (), "folders that a POSIX `folder` may lie in, separated by `:`; empty: refused"
    )
    storage_endpoints: Annotated[tuple[str, ...], _split(",")] = setting(
        "CADOR_STORAGE_ENDPOINTS",
        (),
        "object stores that a request may name: `host`, `host:port`, `*.suffix`, separated by commas, Google's among "
        "them; unset: any but link-local and metadata addresses, which no request may ever lead to",
    )
    storage_buckets: Annotated[tuple[str, ...], _split(",")] = setting(
        "CADOR_STORAGE_BUCKETS", (), "buckets that a request may name, with `*`, separated by commas; unset: any"
    )
    storage_profiles: File | None = setting(
        "CADOR_STORAGE_PROFILES", None, "TOML file of named destinations with their credentials; see storage.md"
    )
    storage_ca: File | None = setting("CADOR_STORAGE_CA", None, "CA bundle for object stores, PEM; unset: the system's")
    gcs_endpoint: HttpUrl = setting(
        "CADOR_GCS_ENDPOINT", "https://storage.googleapis.com", "where `GCS` is: for private endpoints and tests"
    )
    store_inline_images: bool = setting(
        "CADOR_STORE_INLINE_IMAGES", True, "store base64 images of a JSON answer when storage is asked for"
    )
    echo_credentials: bool = setting(
        "CADOR_ECHO_CREDENTIALS", False, "give `key` and `secret` of outputStorage back in messages, as CADoR did"
    )
    tagger: str | None = setting(
        "CADOR_TAGGER", None, "`tagger` of tag messages; unset: organization.name.version of the algorithm"
    )
    lat_step_down: bool = setting(
        "CADOR_LAT_STEP_DOWN", False, "use -abs(latStep): for clients that send a positive step for a north-up image"
    )
    # --- behaviour
    rest_stateful: Literal["link", "inline"] = setting(
        "CADOR_REST_STATEFUL", "link", "what POST /jobs answers for a stateful algorithm: `link` or `inline` (CADoR)"
    )
    allow_config_put: bool = setting("CADOR_ALLOW_CONFIG_PUT", False, "proxy `PUT /config` to the algorithm")
    instance_id: str = Field(
        default_factory=socket.gethostname,
        alias="CADOR_INSTANCE_ID",
        description="stable name of this instance; unset: the host name",
        min_length=1,
    )
    log_level: Literal["debug", "info", "warning", "error"] = setting(
        "CADOR_LOG_LEVEL", "info", "least level that is logged: debug, info, warning, error"
    )
    log_format: Literal["auto", "json", "console"] = setting(
        "CADOR_LOG_FORMAT", "auto", "`json`, `console`, or `auto`: console on a terminal, else json"
    )
    # --- Kafka: where
    kafka_brokers_request: Brokers | None = setting(
        "KAFKA_BROKERS_REQUEST", None, "brokers of the request topic, `host:port,...`; unset: REST alone"
    )
    job_request_topic: Topic | None = setting(
        "EOPAAS_JOB_REQUEST_TOPIC", None, "topic that requests come from; needed with KAFKA_BROKERS_REQUEST"
    )
    kafka_consumer_group: str | None = setting(
        "KAFKA_CONSUMER_GROUP",
        None,
        "consumer group that shares the requests and remembers which are done; needed with KAFKA_BROKERS_REQUEST",
    )
    kafka_brokers_output: Brokers | None = setting(
        "KAFKA_BROKERS_OUTPUT", None, "brokers of the output topic; unset: KAFKA_BROKERS_REQUEST"
    )
    job_output_topic: Topic | None = setting(
        "EOPAAS_JOB_OUTPUT_TOPIC", None, "topic of output messages; unset: none are sent, results are in the store only"
    )
    kafka_brokers_status: Brokers | None = setting(
        "KAFKA_BROKERS_STATUS", None, "brokers of the status topic; unset: KAFKA_BROKERS_REQUEST"
    )
    status_update_topic: Topic | None = setting(
        "EOPAAS_STATUS_UPDATE_TOPIC", None, "topic of status messages; unset: none are sent"
    )
    kafka_brokers_tags: Brokers | None = setting(
        "KAFKA_BROKERS_TAGS", None, "brokers of the tags topic; unset: KAFKA_BROKERS_OUTPUT"
    )
    job_tags_topic: Topic | None = setting(
        "EOPAAS_JOB_TAGS_TOPIC", None, "topic of tag messages; unset: EOPAAS_JOB_OUTPUT_TOPIC"
    )
    dead_letter_topic: Topic | None = setting(
        "CADOR_DEAD_LETTER_TOPIC", None, "topic of dead letters, on the brokers of the request topic; unset: none"
    )
    # --- Kafka: how
    kafka_timeout_seconds: Seconds = setting(
        "CADOR_TIMEOUT_SECONDS",
        10.0,
        "how long Kafka may take to answer at start before that is reported (the daemon goes on waiting, `check` gives "
        "up)",
        unit="seconds",
    )
    delivery: Literal["auto", "exactly-once", "at-least-once"] = setting(
        "CADOR_DELIVERY",
        "auto",
        "`exactly-once` refuses to start where that can't be held, `at-least-once` does without transactions, `auto` "
        "is exactly once for every topic on the request cluster",
    )
    order_by_key: bool = setting("CADOR_ORDER_BY_KEY", False, "jobs of one record key run one after the other")
    group_protocol: Literal["classic", "consumer"] = setting(
        "CADOR_GROUP_PROTOCOL", "classic", "`classic`, or `consumer` for the protocol of KIP-848"
    )
    start_offset: Literal["earliest", "latest"] = setting(
        "CADOR_START_OFFSET", "earliest", "where a group without commits begins: `earliest` or `latest`"
    )
    max_deliveries: Count = setting(
        "CADOR_MAX_DELIVERIES", 3, "times that a request may have begun when its process died; then it fails"
    )
    revoke_grace_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = setting(
        "CADOR_REVOKE_GRACE_SECONDS",
        20.0,
        "what running jobs get when their partition is taken away; at most half of `max.poll.interval.ms`",
        unit="seconds",
    )
    inline_result_limit: Bytes = setting(
        "CADOR_INLINE_RESULT_LIMIT",
        900_000,
        "bytes of a JSON result that a message may hold; a larger one goes to the store, or fails without one",
    )
    publish_rest_jobs: bool = setting(
        "CADOR_PUBLISH_REST_JOBS", False, "send output, tag and status messages for REST jobs too"
    )
    kafka_properties: SecretStr | None = setting(
        "CADOR_KAFKA_PROPERTIES",
        None,
        "librdkafka properties of all Kafka clients (TLS, SASL, ...): `name=value`, one a line or separated by `;`, or "
        "`@/path` of a file of them; see kafka.md",
    )
    kafka_properties_consumer: SecretStr | None = setting(
        "CADOR_KAFKA_PROPERTIES_CONSUMER", None, "more of them for the consumer alone, over the ones for all"
    )
    kafka_properties_producer: SecretStr | None = setting(
        "CADOR_KAFKA_PROPERTIES_PRODUCER", None, "more of them for the producers alone, over the ones for all"
    )

    @property
    def has_kafka(self) -> bool:
        """Jobs come from Kafka too."""
        return self.kafka_brokers_request is not None

    @property
    def output_brokers(self) -> str:
        """Brokers of the output topic; empty without Kafka."""
        return self.kafka_brokers_output or self.kafka_brokers_request or ""

    @property
    def status_brokers(self) -> str:
        """Brokers of the status topic; empty without Kafka."""
        return self.kafka_brokers_status or self.kafka_brokers_request or ""

    @property
    def tags_brokers(self) -> str:
        """Brokers of the tags topic; empty without Kafka."""
        return self.kafka_brokers_tags or self.output_brokers

    @property
    def tags_topic(self) -> str | None:
        """`EOPAAS_JOB_TAGS_TOPIC` with its default, the output topic."""
        return self.job_tags_topic or self.job_output_topic

    @property
    def unfinished_jobs_limit(self) -> int:
        """`CADOR_MAX_UNFINISHED_JOBS` with its default worked out."""
        return self.max_unfinished_jobs or max(8, 4 * self.max_concurrent_jobs)

    def rows(self) -> list[tuple[str, str]]:
        """(variable, value) of every setting, for people: secrets masked, unset ones empty."""
        return [
            (variable_of(name, row), shown(getattr(self, name), unit_of(row)))
            for name, row in type(self).model_fields.items()
        ]

    @classmethod
    def from_variables(cls, values: Mapping[str, str]) -> Self:
        """Check variables and build the settings.

        Raises:
            SettingsError: with one finding for everything that is wrong, in one go.
        """
        findings: list[str] = []
        wrong: set[str] = set()
        try:
            settings = cls.model_validate(dict(values))
        except ValidationError as error:
            for detail in error.errors(include_url=False, include_input=False):
                variable = str(detail["loc"][0])
                wrong.add(variable)
                findings.append(f"{variable}: {_plain(detail['msg'])}")
            # What hangs together is checked on the rest, so that the operator needs one look, not two.
            settings = cls.model_validate({name: value for name, value in values.items() if name not in wrong})
        # Where a variable is wrong, its default stands in, and what contradicts that may not contradict what was meant.
        findings += [text for text in _contradictions(settings) if not any(variable in text for variable in wrong)]
        if findings:
            raise SettingsError(findings)
        return settings


def variable_of(name: str, row: FieldInfo) -> str:
    """The environment variable of a field."""
    return row.alias or name


def unit_of(row: FieldInfo) -> str:
    """`seconds`, `bytes`, or nothing."""
    extra = row.json_schema_extra
    return str(extra.get("unit", "")) if isinstance(extra, dict) else ""


def is_secret(row: FieldInfo) -> bool:
    """Masked everywhere, and may come from a file that `NAME_FILE` names."""
    return row.annotation == SecretStr | None


def read_variables(environment: Mapping[str, str], env_file: Path | None = None) -> dict[str, str]:
    """The environment over an env file.

    Raises:
        SettingsError: the file can't be read.
    """
    return {**_read_env_file(env_file), **environment}


def load_settings(environment: Mapping[str, str], env_file: Path | None = None) -> Settings:
    """Settings from an environment, over an env file; `NAME_FILE` gives a secret's value by file. Empty means unset.

    Raises:
        SettingsError: with one finding for everything that is wrong.
    """
    values = read_variables(environment, env_file)
    known: dict[str, str] = {}
    findings: list[str] = []
    for name, row in Settings.model_fields.items():
        variable = variable_of(name, row)
        text = values.get(variable, "").strip()
        if is_secret(row) and (path := values.get(f"{variable}_FILE", "").strip()):
            if text:
                findings.append(f"{variable}: set it or {variable}_FILE, not both")
                continue
            try:
                text = Path(path).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                findings.append(f"{variable}_FILE: can't be read: {_reason(error)}")
                continue
            if not text:  # a secret that was never filled in must not turn protection off
                findings.append(f"{variable}_FILE: the file is empty")
        if text:
            known[variable] = text
    try:
        settings = Settings.from_variables(known)
    except SettingsError as error:
        raise SettingsError(findings + error.findings) from None
    if findings:
        raise SettingsError(findings)
    return settings


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """`CADOR_…` variables that no setting has: a typing error, most likely. Service links of Kubernetes are none."""
    rows = {variable_of(name, row): row for name, row in Settings.model_fields.items()}
    known = {*rows, *(f"{variable}_FILE" for variable, row in rows.items() if is_secret(row))}
    service_link = re.compile(r"_(SERVICE_(HOST|PORT).*|PORT(_\d+_(TCP|UDP).*)?)$")
    return sorted(
        name
        for name in environment
        if name.startswith("CADOR_") and name not in known and not service_link.search(name)
    )


def _read_env_file(path: Path | None) -> dict[str, str]:
    if path is None:
        return {}
    if not path.is_file():
        raise SettingsError([f"--env-file: {path}: no such file"])
    try:
        return {name: value or "" for name, value in dotenv_values(path, interpolate=False).items()}
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError([f"--env-file: {path}: {_reason(error)}"]) from error


def _contradictions(settings: Settings) -> list[str]:
    """What is wrong between settings, or between a setting and this machine."""
    return [
        *_port_contradictions(settings),
        *_tls_contradictions(settings),
        *_folder_contradictions(settings),
        *(_topic_contradictions(settings) if settings.has_kafka else _idle_kafka(settings)),
    ]


def _port_contradictions(settings: Settings) -> list[str]:
    if settings.metrics_port and settings.metrics_port == settings.port:
        return ["CADOR_METRICS_PORT: must not be CADOR_PORT; unset, `/metrics` is there anyway"]
    return []


def _tls_contradictions(settings: Settings) -> list[str]:
    found: list[str] = []
    files = {
        "CADOR_SSL_CERT": settings.ssl_cert,
        "CADOR_SSL_KEY": settings.ssl_key,
        "CADOR_SSL_CLIENT_CA": settings.ssl_client_ca,
        "CADOR_ALGORITHM_CA": settings.algorithm_ca,
        "CADOR_STORAGE_CA": settings.storage_ca,
        "CADOR_STORAGE_PROFILES": settings.storage_profiles,
    }
    found += [
        f"{variable}: {path}: no such file, or not readable"
        for variable, path in files.items()
        if path is not None and not (path.is_file() and os.access(path, os.R_OK))
    ]
    if (settings.ssl_cert is None) != (settings.ssl_key is None):
        missing = "CADOR_SSL_KEY" if settings.ssl_key is None else "CADOR_SSL_CERT"
        found.append(f"{missing}: certificate and key go together")
    if settings.use_ssl and settings.ssl_cert is None and settings.ssl_key is None and not settings.self_signed:
        found.append("CADOR_USE_SSL: needs CADOR_SSL_CERT and CADOR_SSL_KEY (or CADOR_SELF_SIGNED=true for a trial)")
    if not settings.use_ssl and settings.ssl_client_ca is not None:
        found.append("CADOR_SSL_CLIENT_CA: has no effect without CADOR_USE_SSL=true")
    return found


def _folder_contradictions(settings: Settings) -> list[str]:
    found = [
        f"CADOR_POSIX_ROOTS: {root}: must be an absolute path below /"
        for root in settings.posix_roots
        if not root.is_absolute() or root == Path("/")
    ]
    folder = settings.spool_dir
    if folder is not None and not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        found.append(f"CADOR_SPOOL_DIR: {folder}: no such folder, or not writable")
    return found


def _idle_kafka(settings: Settings) -> list[str]:
    """What asks for Kafka although there is none; tuning that lies idle says nothing wrong."""
    asking = {
        "EOPAAS_JOB_REQUEST_TOPIC": settings.job_request_topic,
        "KAFKA_CONSUMER_GROUP": settings.kafka_consumer_group,
        "KAFKA_BROKERS_OUTPUT": settings.kafka_brokers_output,
        "EOPAAS_JOB_OUTPUT_TOPIC": settings.job_output_topic,
        "KAFKA_BROKERS_STATUS": settings.kafka_brokers_status,
        "EOPAAS_STATUS_UPDATE_TOPIC": settings.status_update_topic,
        "KAFKA_BROKERS_TAGS": settings.kafka_brokers_tags,
        "EOPAAS_JOB_TAGS_TOPIC": settings.job_tags_topic,
        "CADOR_DEAD_LETTER_TOPIC": settings.dead_letter_topic,
        "CADOR_PUBLISH_REST_JOBS": settings.publish_rest_jobs,
        "CADOR_DELIVERY": settings.delivery == "exactly-once",
    }
    return [f"{variable}: {_KAFKA_IS_OFF}" for variable, is_asked in asking.items() if is_asked]


def _topic_contradictions(settings: Settings) -> list[str]:
    found: list[str] = []
    if settings.job_request_topic is None:
        found.append("EOPAAS_JOB_REQUEST_TOPIC: needed with KAFKA_BROKERS_REQUEST")
    if settings.kafka_consumer_group is None:
        found.append(
            "KAFKA_CONSUMER_GROUP: needed with KAFKA_BROKERS_REQUEST; without a group every instance does every job"
        )
    outgoing = {
        "EOPAAS_JOB_OUTPUT_TOPIC": (settings.job_output_topic, settings.output_brokers),
        "EOPAAS_JOB_TAGS_TOPIC": (settings.job_tags_topic, settings.tags_brokers),
        "EOPAAS_STATUS_UPDATE_TOPIC": (settings.status_update_topic, settings.status_brokers),
    }
    found += [
        f"{variable}: must not be the request topic: what we send would come back as requests"
        for variable, (topic, brokers) in outgoing.items()
        if topic is not None and topic == settings.job_request_topic and _share_a_broker(brokers, settings)
    ]
    used = {settings.job_request_topic: "EOPAAS_JOB_REQUEST_TOPIC"}
    used |= {topic: variable for variable, (topic, _) in outgoing.items()}
    if settings.dead_letter_topic is not None and settings.dead_letter_topic in used:
        found.append(f"CADOR_DEAD_LETTER_TOPIC: must not be that of {used[settings.dead_letter_topic]}")
    if settings.publish_rest_jobs and not any(topic for topic, _ in outgoing.values()):
        found.append("CADOR_PUBLISH_REST_JOBS: has no effect without a topic for output, tags or statuses")
    return found


def _share_a_broker(brokers: str, settings: Settings) -> bool:
    """Surely one cluster. Two lists without a common broker may still be one: that is for cluster ids to tell."""
    return not set(brokers.split(",")).isdisjoint((settings.kafka_brokers_request or "").split(","))


def _plain(message: str) -> str:
    return message.removeprefix("Value error, ")


def _reason(error: Exception) -> str:
    return (error.strerror or "unreadable") if isinstance(error, OSError) else "not UTF-8 text"


def shown(value: object, unit: str = "") -> str:
    """A value for people, such that it can be given back as it is; secrets are masked, None is nothing."""
    match value:
        case None | ():
            return ""
        case bool():
            return str(value).lower()
        case int() if unit == "bytes":
            return _size(value)
        case tuple():
            return (":" if isinstance(value[0], Path) else ",").join(str(part) for part in value)
        case float():
            return f"{value:g}"
        case _:
            return str(value)


def _size(count: int) -> str:
    """Exact: the largest unit that divides it."""
    for exponent, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if count and count % 1024**exponent == 0:
            return f"{count // 1024**exponent}{unit}"
    return str(count)
