"""Settings: the table, how values are read, and that everything wrong is told at once."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any, Final

import pytest
from pydantic import ValidationError

from cador_trio.errors import SettingsError
from cador_trio.settings import (
    GIB,
    MIB,
    Settings,
    is_secret,
    load_settings,
    read_variables,
    shown,
    unit_of,
    unknown_variables,
    variable_of,
)
from cador_trio.settings_page import page

ROOT: Final = Path(__file__).parents[1]

# Every variable that a daemon knows, but those of storage, with its default: the contract with its operators.
DEFAULTS: Final[dict[str, Any]] = {
    "CADOR_HOST": "0.0.0.0",
    "CADOR_PORT": 9090,
    "CADOR_METRICS_PORT": None,
    "CADOR_MAX_CONNECTIONS": 1000,
    "PROCESSING_SERVER": "http://127.0.0.1:8080",
    "CADOR_PUBLIC_URL": None,
    "CADOR_USE_SSL": False,
    "CADOR_SSL_CERT": None,
    "CADOR_SSL_KEY": None,
    "CADOR_SSL_CLIENT_CA": None,
    "CADOR_SELF_SIGNED": False,
    "CADOR_ALGORITHM_CA": None,
    "CADOR_API_TOKEN": None,
    "CADOR_MAX_CONCURRENT_JOBS": 1,
    "CADOR_MAX_UNFINISHED_JOBS": None,
    "CADOR_HTTP_SHARE": 0.25,
    "CADOR_MAX_WAITING_JOBS": 16,
    "CADOR_MAX_WAITING_BYTES": 256 * MIB,
    "CADOR_JOB_TIMEOUT_SECONDS": 1000,
    "CADOR_STORE_TIMEOUT_SECONDS": 600,
    "CADOR_SHUTDOWN_GRACE_SECONDS": 20,
    "CADOR_MAX_ATTEMPTS": 3,
    "CADOR_MAX_BODY_BYTES": 100 * MIB,
    "CADOR_SPOOL_DIR": None,
    "CADOR_SPOOL_BYTES": 10 * GIB,
    "CADOR_MAX_ANSWER_BYTES": 256 * MIB,
    "CADOR_MAX_RESULT_BYTES": 10 * GIB,
    "CADOR_JOB_HISTORY": 1000,
    "CADOR_JOB_HISTORY_SECONDS": 3600,
    "CADOR_JOB_HISTORY_BYTES": GIB,
    "CADOR_POSIX_ROOTS": (),
    "CADOR_STORE_INLINE_IMAGES": True,
    "CADOR_ECHO_CREDENTIALS": False,
    "CADOR_TAGGER": None,
    "CADOR_LAT_STEP_DOWN": False,
    "CADOR_REST_STATEFUL": "link",
    "CADOR_ALLOW_CONFIG_PUT": False,
    "CADOR_LOG_LEVEL": "info",
    "CADOR_LOG_FORMAT": "auto",
    "KAFKA_BROKERS_REQUEST": None,
    "EOPAAS_JOB_REQUEST_TOPIC": None,
    "KAFKA_CONSUMER_GROUP": None,
    "KAFKA_BROKERS_OUTPUT": None,
    "EOPAAS_JOB_OUTPUT_TOPIC": None,
    "KAFKA_BROKERS_STATUS": None,
    "EOPAAS_STATUS_UPDATE_TOPIC": None,
    "KAFKA_BROKERS_TAGS": None,
    "EOPAAS_JOB_TAGS_TOPIC": None,
    "CADOR_DEAD_LETTER_TOPIC": None,
    "CADOR_TIMEOUT_SECONDS": 10,
    "CADOR_DELIVERY": "auto",
    "CADOR_ORDER_BY_KEY": False,
    "CADOR_GROUP_PROTOCOL": "classic",
    "CADOR_START_OFFSET": "earliest",
    "CADOR_MAX_DELIVERIES": 3,
    "CADOR_REVOKE_GRACE_SECONDS": 20,
    "CADOR_INLINE_RESULT_LIMIT": 900_000,
    "CADOR_PUBLISH_REST_JOBS": False,
    "CADOR_KAFKA_PROPERTIES": None,
    "CADOR_KAFKA_PROPERTIES_CONSUMER": None,
    "CADOR_KAFKA_PROPERTIES_PRODUCER": None,
}
FIELDS: Final = {variable_of(name, row): name for name, row in Settings.model_fields.items()}


def load(**variables: str) -> Settings:
    return load_settings(variables)


def findings_of(**variables: str) -> list[str]:
    with pytest.raises(SettingsError) as wrong:
        load(**variables)
    return wrong.value.findings


# --- The table ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variable", DEFAULTS)
def test_defaults(variable: str) -> None:
    """Without a word from the operator this holds."""
    assert getattr(load(), FIELDS[variable]) == DEFAULTS[variable]


def test_the_instance_is_called_as_its_host() -> None:
    """The one default that is found out."""
    assert load().instance_id == socket.gethostname()


@pytest.mark.parametrize(("jobs", "limit"), [(1, 8), (2, 8), (3, 12), (64, 256)])
def test_the_limit_of_unfinished_jobs_follows_the_slots(jobs: int, limit: int) -> None:
    """Four times the slots, eight at least, unless the operator says otherwise."""
    assert load(CADOR_MAX_CONCURRENT_JOBS=str(jobs)).unfinished_jobs_limit == limit
    assert load(CADOR_MAX_CONCURRENT_JOBS=str(jobs), CADOR_MAX_UNFINISHED_JOBS="3").unfinished_jobs_limit == 3


def test_every_row_has_its_sentence_and_its_unit() -> None:
    """And a name whose end says the unit where there is one."""
    for name, row in Settings.model_fields.items():
        variable = variable_of(name, row)
        assert row.description, variable
        for unit in ("seconds", "bytes"):
            assert variable.endswith(f"_{unit.upper()}") is (unit_of(row) == unit), variable


def test_the_page_is_drawn_from_the_table() -> None:
    """docs/settings.md is what `just docs` makes of it."""
    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == page()


def test_the_page_names_every_variable_and_no_machine() -> None:
    """Complete, and the same on every host."""
    text = page()
    for variable in FIELDS:
        assert f"| `{variable}` |" in text
    assert socket.gethostname() not in text


# --- Reading values -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *((text, False) for text in ("false", "False", "0", "no", "off", "", "  ")),
        *((text, True) for text in ("true", "TRUE", "1", "yes", "on")),
    ],
)
def test_switches_are_read_as_people_write_them(text: str, value: bool) -> None:
    """`CADOR_USE_SSL=false` is off, whatever the original made of it."""
    assert load(CADOR_USE_SSL=text, CADOR_SELF_SIGNED="true").use_ssl is value


@pytest.mark.parametrize("text", ["maybe", "2", "none", "enabled"])
def test_other_words_are_no_switches(text: str) -> None:
    """Rather than guess."""
    assert findings_of(CADOR_USE_SSL=text)[0].startswith("CADOR_USE_SSL: ")


@pytest.mark.parametrize(
    ("text", "size"),
    [("64MiB", 64 * MIB), ("64 MiB", 64 * MIB), ("1GiB", GIB), ("1.5GiB", 3 * GIB // 2), ("100", 100), ("1kB", 1000)],
)
def test_sizes_may_have_units(text: str, size: int) -> None:
    """Bytes, or with the unit that people say."""
    assert load(CADOR_SPOOL_BYTES=text).spool_bytes == size


@pytest.mark.parametrize("text", ["0", "-5", "lots", "1 parsec", "nan"])
def test_what_is_no_size(text: str) -> None:
    """A limit of nothing is no limit that anyone means."""
    assert findings_of(CADOR_SPOOL_BYTES=text)[0].startswith("CADOR_SPOOL_BYTES: ")


@pytest.mark.parametrize(("text", "seconds"), [("1000", 1000), ("0.5", 0.5), (" 20 ", 20)])
def test_durations_are_seconds(text: str, seconds: float) -> None:
    """Fractions allowed."""
    assert load(CADOR_JOB_TIMEOUT_SECONDS=text).job_timeout_seconds == seconds


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("CADOR_JOB_TIMEOUT_SECONDS", "0"),
        ("CADOR_JOB_TIMEOUT_SECONDS", "inf"),
        ("CADOR_JOB_TIMEOUT_SECONDS", "nan"),
        ("CADOR_JOB_TIMEOUT_SECONDS", "10s"),
        ("CADOR_SHUTDOWN_GRACE_SECONDS", "-1"),
        ("CADOR_MAX_CONCURRENT_JOBS", "0"),
        ("CADOR_MAX_CONCURRENT_JOBS", "1.5"),
        ("CADOR_MAX_WAITING_JOBS", "-1"),
        ("CADOR_HTTP_SHARE", "1.1"),
        ("CADOR_HTTP_SHARE", "nan"),
        ("CADOR_PORT", "65536"),
        ("CADOR_PORT", "http"),
        ("CADOR_LOG_LEVEL", "verbose"),
        ("CADOR_LOG_FORMAT", "xml"),
        ("CADOR_REST_STATEFUL", "both"),
        ("PROCESSING_SERVER", "localhost:8080"),
        ("PROCESSING_SERVER", "ftp://host"),
        ("PROCESSING_SERVER", "http://"),
        ("PROCESSING_SERVER", "http://host/?a=1"),
        ("PROCESSING_SERVER", "http://host/#a"),
        ("PROCESSING_SERVER", "http://[::1"),
        ("CADOR_PUBLIC_URL", "//host"),
    ],
)
def test_wrong_values_are_named(variable: str, text: str) -> None:
    """By their variable, in one finding."""
    findings = findings_of(**{variable: text})
    assert len(findings) == 1
    assert findings[0].startswith(f"{variable}: ")
    assert "Value error" not in findings[0]


@pytest.mark.parametrize("variable", ["CADOR_SHUTDOWN_GRACE_SECONDS", "CADOR_MAX_WAITING_JOBS", "CADOR_JOB_HISTORY"])
def test_what_may_be_none(variable: str) -> None:
    """No grace, no queue, no history: each makes sense to somebody."""
    assert getattr(load(**{variable: "0"}), FIELDS[variable]) == 0


@pytest.mark.parametrize("url", ["http://user:hunter2@host", "http://hunter2@host", "http://host:hunter2"])
@pytest.mark.parametrize("variable", ["PROCESSING_SERVER", "CADOR_PUBLIC_URL"])
def test_urls_hold_no_secrets_and_findings_quote_none(variable: str, url: str) -> None:
    """They show up in logs and links."""
    (finding,) = findings_of(**{variable: url})
    assert "hunter2" not in finding


def test_a_url_ends_without_a_slash() -> None:
    """So that paths can be added."""
    assert load(PROCESSING_SERVER="http://host/api/").processing_server == "http://host/api"


def test_roots_are_a_list_of_folders() -> None:
    """Separated as in PATH; blanks and empty parts are nothing."""
    assert load(CADOR_POSIX_ROOTS="/data: /more/data ::").posix_roots == (Path("/data"), Path("/more/data"))


@pytest.mark.parametrize("root", ["data", "/", "./x"])
def test_a_root_is_an_absolute_folder_below_the_root(root: str) -> None:
    """`/` would allow everything."""
    assert findings_of(CADOR_POSIX_ROOTS=f"/data:{root}") == [
        f"CADOR_POSIX_ROOTS: {Path(root)}: must be an absolute path below /"
    ]


def test_a_kubernetes_service_link_is_explained() -> None:
    """A Service called "cador" puts a URL into CADOR_PORT; the operator reads what to do."""
    (finding,) = findings_of(CADOR_PORT="tcp://10.0.0.1:9090")
    assert "Kubernetes service link" in finding
    assert "enableServiceLinks" in finding


def test_python_gives_the_same_settings() -> None:
    """A test or the demo builds them by field name; they can't be changed, and unknown names are refused."""
    settings = Settings(port=0, host="127.0.0.1")
    assert settings == load(CADOR_PORT="0", CADOR_HOST="127.0.0.1")
    with pytest.raises(ValidationError):
        settings.port = 1
    with pytest.raises(ValidationError):
        Settings(prot=0)  # type: ignore[call-arg] # misspelt, which is the point


# --- Everything at once -------------------------------------------------------------------------------------------


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    """Wrong values, contradictions and unreadable files in one go: the operator looks once."""
    findings = findings_of(
        CADOR_PORT="x",
        CADOR_SPOOL_BYTES="lots",
        CADOR_USE_SSL="true",
        CADOR_POSIX_ROOTS="relative",
        CADOR_SPOOL_DIR=str(tmp_path / "missing"),
        CADOR_API_TOKEN_FILE=str(tmp_path / "missing"),
        CADOR_ALGORITHM_CA=str(tmp_path / "missing.pem"),
        KAFKA_BROKERS_REQUEST="kafka:9092",
        EOPAAS_JOB_REQUEST_TOPIC="a topic",
    )
    named = sorted(finding.split(":")[0] for finding in findings)
    assert named == [
        "CADOR_ALGORITHM_CA",
        "CADOR_API_TOKEN_FILE",
        "CADOR_PORT",
        "CADOR_POSIX_ROOTS",
        "CADOR_SPOOL_BYTES",
        "CADOR_SPOOL_DIR",
        "CADOR_USE_SSL",
        "EOPAAS_JOB_REQUEST_TOPIC",
        "KAFKA_CONSUMER_GROUP",
    ]


def test_a_wrong_value_contradicts_nothing(tmp_path: Path) -> None:
    """Its default stands in for it; a finding about that would send the operator the wrong way."""
    file = tmp_path / "ca.pem"
    file.touch()
    (finding,) = findings_of(CADOR_USE_SSL="maybe", CADOR_SSL_CLIENT_CA=str(file))
    assert finding.startswith("CADOR_USE_SSL: ")


@pytest.mark.parametrize(
    ("given", "finding"),
    [
        (["CADOR_SSL_CERT"], "CADOR_SSL_KEY: certificate and key go together"),
        (["CADOR_SSL_KEY"], "CADOR_SSL_CERT: certificate and key go together"),
        (["CADOR_SSL_CLIENT_CA"], "CADOR_SSL_CLIENT_CA: has no effect without CADOR_USE_SSL=true"),
    ],
)
def test_tls_settings_hang_together(tmp_path: Path, given: list[str], finding: str) -> None:
    """Half a pair is a mistake, and so is protection that protects nothing."""
    file = tmp_path / "file.pem"
    file.touch()
    assert findings_of(**dict.fromkeys(given, str(file))) == [finding]


def test_metrics_have_a_port_of_their_own_or_none() -> None:
    """The same port twice is a mistake; two free ones are not."""
    (finding,) = findings_of(CADOR_PORT="9000", CADOR_METRICS_PORT="9000")
    assert finding.startswith("CADOR_METRICS_PORT: must not be CADOR_PORT")
    (finding,) = findings_of(CADOR_METRICS_PORT="tcp://10.0.0.1:9091")
    assert "service link" in finding
    assert load(CADOR_PORT="0", CADOR_METRICS_PORT="0").metrics_port == 0


def test_tls_needs_a_certificate_or_the_word_for_none(tmp_path: Path) -> None:
    """Never silently self-signed."""
    (finding,) = findings_of(CADOR_USE_SSL="true")
    assert "CADOR_SSL_CERT" in finding
    assert load(CADOR_USE_SSL="true", CADOR_SELF_SIGNED="true").use_ssl
    file = tmp_path / "file.pem"
    file.touch()
    assert load(CADOR_USE_SSL="true", CADOR_SSL_CERT=str(file), CADOR_SSL_KEY=str(file)).use_ssl


def test_a_folder_is_no_certificate(tmp_path: Path) -> None:
    """It can be read, but not as one."""
    (finding,) = findings_of(CADOR_ALGORITHM_CA=str(tmp_path))
    assert finding == f"CADOR_ALGORITHM_CA: {tmp_path}: no such file, or not readable"


def test_a_file_is_no_spool_folder(tmp_path: Path) -> None:
    """Though it may be written."""
    file = tmp_path / "file"
    file.touch(mode=0o777)
    (finding,) = findings_of(CADOR_SPOOL_DIR=str(file))
    assert finding == f"CADOR_SPOOL_DIR: {file}: no such folder, or not writable"


# --- Kafka --------------------------------------------------------------------------------------------------------

KAFKA: Final = {
    "KAFKA_BROKERS_REQUEST": "kafka:9092",
    "EOPAAS_JOB_REQUEST_TOPIC": "requests",
    "KAFKA_CONSUMER_GROUP": "group",
}


def test_kafka_is_off_by_default() -> None:
    """REST alone needs none of it."""
    settings = load()
    assert not settings.has_kafka
    assert (settings.output_brokers, settings.status_brokers, settings.tags_brokers) == ("", "", "")


def test_requests_alone_are_enough_for_kafka() -> None:
    """No output, no statuses: results live in the store only."""
    settings = load(**KAFKA)
    assert settings.has_kafka
    assert (settings.job_output_topic, settings.tags_topic, settings.status_update_topic) == (None, None, None)


@pytest.mark.parametrize("missing", ["EOPAAS_JOB_REQUEST_TOPIC", "KAFKA_CONSUMER_GROUP"])
def test_kafka_needs_topic_and_group(missing: str) -> None:
    """Without a group every instance would do every job."""
    (finding,) = findings_of(**{name: value for name, value in KAFKA.items() if name != missing})
    assert finding.startswith(f"{missing}: needed with KAFKA_BROKERS_REQUEST")


def test_brokers_default_to_those_of_the_requests() -> None:
    """The tags' to the output's, as CADoR had it; and tags go to the output topic."""
    settings = load(**KAFKA, EOPAAS_JOB_OUTPUT_TOPIC="out")
    assert {settings.output_brokers, settings.status_brokers, settings.tags_brokers} == {"kafka:9092"}
    assert settings.tags_topic == "out"
    settings = load(**KAFKA, KAFKA_BROKERS_OUTPUT="other:1", KAFKA_BROKERS_STATUS="third:1", EOPAAS_JOB_TAGS_TOPIC="t")
    assert (settings.output_brokers, settings.tags_brokers) == ("other:1", "other:1")
    assert (settings.status_brokers, settings.tags_topic) == ("third:1", "t")
    assert load(**KAFKA, KAFKA_BROKERS_OUTPUT="other:1", KAFKA_BROKERS_TAGS="tags:1").tags_brokers == "tags:1"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("EOPAAS_JOB_REQUEST_TOPIC", "t"),
        ("KAFKA_CONSUMER_GROUP", "g"),
        ("EOPAAS_JOB_OUTPUT_TOPIC", "t"),
        ("EOPAAS_STATUS_UPDATE_TOPIC", "t"),
        ("EOPAAS_JOB_TAGS_TOPIC", "t"),
        ("CADOR_DEAD_LETTER_TOPIC", "t"),
        ("KAFKA_BROKERS_OUTPUT", "kafka:9092"),
        ("KAFKA_BROKERS_STATUS", "kafka:9092"),
        ("KAFKA_BROKERS_TAGS", "kafka:9092"),
        ("CADOR_PUBLISH_REST_JOBS", "true"),
        ("CADOR_DELIVERY", "exactly-once"),
    ],
)
def test_what_asks_for_kafka_needs_the_brokers_of_the_requests(variable: str, value: str) -> None:
    """A topic that nobody reads or writes would be noticed late."""
    (finding,) = findings_of(**{variable: value})
    assert finding.startswith(f"{variable}: has no effect without KAFKA_BROKERS_REQUEST")


def test_tuning_may_lie_idle() -> None:
    """One template serves daemons with and without Kafka."""
    load(CADOR_ORDER_BY_KEY="true", CADOR_KAFKA_PROPERTIES="client.rack=a", CADOR_GROUP_PROTOCOL="consumer")


@pytest.mark.parametrize("variable", ["EOPAAS_JOB_OUTPUT_TOPIC", "EOPAAS_JOB_TAGS_TOPIC", "EOPAAS_STATUS_UPDATE_TOPIC"])
def test_what_is_sent_must_not_come_back_as_a_request(variable: str) -> None:
    """On another cluster a topic may be called the same."""
    (finding,) = findings_of(**KAFKA, **{variable: "requests"})
    assert finding.startswith(f"{variable}: must not be the request topic")
    (finding,) = findings_of(**KAFKA | {"KAFKA_BROKERS_REQUEST": "a:1,kafka:9092"}, **{variable: "requests"})
    assert finding.startswith(f"{variable}: must not be the request topic")
    load(**KAFKA, **{variable: "requests"}, KAFKA_BROKERS_OUTPUT="other:1", KAFKA_BROKERS_STATUS="other:1")


@pytest.mark.parametrize(
    "variable",
    ["EOPAAS_JOB_REQUEST_TOPIC", "EOPAAS_JOB_OUTPUT_TOPIC", "EOPAAS_JOB_TAGS_TOPIC", "EOPAAS_STATUS_UPDATE_TOPIC"],
)
def test_dead_letters_have_a_topic_of_their_own(variable: str) -> None:
    """Whoever replays them must find nothing else."""
    (finding,) = findings_of(**KAFKA | {variable: "dead"}, CADOR_DEAD_LETTER_TOPIC="dead")
    assert finding == f"CADOR_DEAD_LETTER_TOPIC: must not be that of {variable}"
    load(**KAFKA, CADOR_DEAD_LETTER_TOPIC="dead")


def test_rest_jobs_are_published_somewhere() -> None:
    """Some topic must be there for them."""
    (finding,) = findings_of(**KAFKA, CADOR_PUBLISH_REST_JOBS="true")
    assert finding.startswith("CADOR_PUBLISH_REST_JOBS: has no effect")
    assert load(**KAFKA, CADOR_PUBLISH_REST_JOBS="true", EOPAAS_STATUS_UPDATE_TOPIC="s").publish_rest_jobs


@pytest.mark.parametrize(
    ("text", "brokers"),
    [
        ("kafka", "kafka"),
        (" a:1 , b:2,", "a:1,b:2"),
        ("[::1]:9092", "[::1]:9092"),
        ("SASL_SSL://kafka:9092", "SASL_SSL://kafka:9092"),
    ],
)
def test_brokers_are_a_list(text: str, brokers: str) -> None:
    """As librdkafka reads them."""
    assert load(**KAFKA | {"KAFKA_BROKERS_REQUEST": text}).kafka_brokers_request == brokers


@pytest.mark.parametrize(
    "text", [",", "kafka:port", "http://kafka:9092", "u:hunter2@kafka:9092", "a b", "::1", "a:1/x"]
)
def test_what_are_no_brokers(text: str) -> None:
    """Refused without a quotation: it may hold a password."""
    (finding,) = findings_of(**KAFKA | {"KAFKA_BROKERS_REQUEST": text})
    assert finding == "KAFKA_BROKERS_REQUEST: must be host:port, or several separated by commas"


@pytest.mark.parametrize("topic", ["a topic", "a/b", "ü", ".", "..", "x" * 250])
def test_what_is_no_topic(topic: str) -> None:
    """Kafka's own rule for names."""
    (finding,) = findings_of(**KAFKA | {"EOPAAS_JOB_REQUEST_TOPIC": topic})
    assert finding.startswith("EOPAAS_JOB_REQUEST_TOPIC: must be a topic's name")
    assert load(**KAFKA | {"EOPAAS_JOB_REQUEST_TOPIC": "x" * 249}).job_request_topic == "x" * 249


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("CADOR_DELIVERY", "maybe-once"),
        ("CADOR_GROUP_PROTOCOL", "share"),
        ("CADOR_START_OFFSET", "5"),
        ("CADOR_MAX_DELIVERIES", "0"),
        ("CADOR_REVOKE_GRACE_SECONDS", "-1"),
        ("CADOR_TIMEOUT_SECONDS", "0"),
        ("CADOR_INLINE_RESULT_LIMIT", "0"),
    ],
)
def test_wrong_values_for_kafka_are_named(variable: str, text: str) -> None:
    """Like all others."""
    (finding,) = findings_of(**KAFKA, **{variable: text})
    assert finding.startswith(f"{variable}: ")


def test_properties_are_secrets() -> None:
    """Passwords of brokers stand among them."""
    settings = load(**KAFKA, CADOR_KAFKA_PROPERTIES="sasl.password=hunter2")
    assert "hunter2" not in f"{settings!r}{settings.rows()}"
    secrets = {variable_of(name, row) for name, row in Settings.model_fields.items() if is_secret(row)}
    assert secrets >= {f"CADOR_KAFKA_PROPERTIES{end}" for end in ("", "_CONSUMER", "_PRODUCER")}


# --- Where values come from ---------------------------------------------------------------------------------------


def test_an_env_file_is_read_below_the_environment(tmp_path: Path) -> None:
    """Its lines hold unless the environment says otherwise; nothing in it is expanded."""
    file = tmp_path / "cador.env"
    file.write_text(
        "# trial\nCADOR_PORT=1\nCADOR_HOST='127.0.0.1'\nCADOR_TAGGER=${HOME}\n\nexport CADOR_LOG_LEVEL=debug\n"
    )
    settings = load_settings({"CADOR_PORT": "2"}, file)
    assert (settings.port, settings.host, settings.tagger, settings.log_level) == (2, "127.0.0.1", "${HOME}", "debug")
    assert read_variables({"CADOR_PORT": "2"}, file)["CADOR_PORT"] == "2"


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_an_env_file_that_can_not_be_read(tmp_path: Path, content: bytes | None) -> None:
    """Missing or no text: a finding, not a traceback."""
    file = tmp_path / "cador.env"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SettingsError, match="--env-file"):
        load_settings({}, file)


def test_a_secret_may_come_from_a_file(tmp_path: Path) -> None:
    """As orchestrators hand them over; the line's end is not part of it."""
    file = tmp_path / "token"
    file.write_text("hunter2\n")
    token = load(CADOR_API_TOKEN_FILE=str(file)).api_token
    assert token is not None
    assert token.get_secret_value() == "hunter2"


def test_a_secret_has_one_source(tmp_path: Path) -> None:
    """Two would be a riddle."""
    file = tmp_path / "token"
    file.write_text("hunter3")
    (finding,) = findings_of(CADOR_API_TOKEN="hunter2", CADOR_API_TOKEN_FILE=str(file))
    assert finding == "CADOR_API_TOKEN: set it or CADOR_API_TOKEN_FILE, not both"


@pytest.mark.parametrize("content", [b"", b"  \n"])
def test_an_empty_secret_file_does_not_turn_protection_off(tmp_path: Path, content: bytes) -> None:
    """Whoever names a file means to have a token."""
    file = tmp_path / "token"
    file.write_bytes(content)
    assert findings_of(CADOR_API_TOKEN_FILE=str(file)) == ["CADOR_API_TOKEN_FILE: the file is empty"]


def test_only_secrets_have_a_twin(tmp_path: Path) -> None:
    """For others it is a typing error, and named as one."""
    file = tmp_path / "host"
    file.write_text("127.0.0.1")
    assert load(CADOR_HOST_FILE=str(file)).host == "0.0.0.0"
    secrets = [variable_of(name, row) for name, row in Settings.model_fields.items() if is_secret(row)]
    assert "CADOR_API_TOKEN" in secrets
    assert "CADOR_HOST" not in secrets


def test_secrets_never_show(tmp_path: Path) -> None:
    """Not in `repr`, not among the rows of `check`, not in a finding about the file or about anything else."""
    settings = load(CADOR_API_TOKEN="hunter2")
    assert "hunter2" not in f"{settings!r}{settings}{settings.rows()}"
    assert dict(settings.rows())["CADOR_API_TOKEN"] == "**********"
    file = tmp_path / "token"
    file.write_bytes(b"hunter2\xff")
    findings = findings_of(CADOR_API_TOKEN_FILE=str(file), CADOR_PORT="x")
    assert findings[0] == "CADOR_API_TOKEN_FILE: can't be read: not UTF-8 text"
    assert "hunter2" not in str(findings)


def test_unknown_variables_are_named() -> None:
    """Misspelt ones, and twins of what is no secret; never what Kubernetes adds on its own, nor foreign ones."""
    environment = {
        "CADOR_PROT": "1",
        "CADOR_HOST_FILE": "x",
        "CADOR_PORT": "1",
        "CADOR_API_TOKEN_FILE": "x",
        "CADOR_SERVICE_HOST": "10.0.0.1",
        "CADOR_SERVICE_PORT_HTTP": "1",
        "CADOR_PORT_9090_TCP": "tcp://10.0.0.1:9090",
        "CADOR_PORT_9090_TCP_ADDR": "10.0.0.1",
        "PATH": "/bin",
        "EOPAAS_X": "1",
    }
    assert unknown_variables(environment) == ["CADOR_HOST_FILE", "CADOR_PROT"]


# --- Showing values -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (None, "", ""),
        ((), "", ""),
        (True, "", "true"),
        (False, "", "false"),
        (9090, "", "9090"),
        (0.25, "", "0.25"),
        (1000.0, "seconds", "1000"),
        (64 * MIB, "bytes", "64MiB"),
        (10 * GIB, "bytes", "10GiB"),
        (3 * 512 * MIB, "bytes", "1536MiB"),
        (GIB + 1024, "bytes", "1048577KiB"),
        (1_000_001, "bytes", "1000001"),
        ((Path("/a"), Path("/b")), "", "/a:/b"),
    ],
)
def test_values_are_shown_as_they_could_be_given(value: object, unit: str, text: str) -> None:
    """Exactly: no rounding, no unit that can't be read back."""
    assert shown(value, unit) == text


def test_what_check_shows_can_be_given_back() -> None:
    """The rows, taken as an environment, are the same settings."""
    settings = load(CADOR_SPOOL_BYTES="1048577KiB", CADOR_POSIX_ROOTS="/a:/b", CADOR_HTTP_SHARE="0.125", CADOR_PORT="0")
    assert load_settings(dict(settings.rows())) == settings
