"""What a command for users takes from the environment: the daemon's own variables, and of them only what it needs.

A user's machine is no daemon: a folder or certificate that is missing there is nobody's concern here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from cador_trio.settings import Settings, load_settings

BROKERS: Final = "KAFKA_BROKERS_REQUEST"
REQUEST_TOPIC: Final = "EOPAAS_JOB_REQUEST_TOPIC"
STATUS_BROKERS: Final = "KAFKA_BROKERS_STATUS"
STATUS_TOPIC: Final = "EOPAAS_STATUS_UPDATE_TOPIC"
DEAD_LETTER_TOPIC: Final = "CADOR_DEAD_LETTER_TOPIC"

_PLACES: Final = (BROKERS, REQUEST_TOPIC, STATUS_BROKERS, STATUS_TOPIC, DEAD_LETTER_TOPIC)
_OTHERS: Final = ("CADOR_PORT", "CADOR_API_TOKEN", "CADOR_KAFKA_PROPERTIES")
# A daemon with Kafka needs both. A command joins no group, and reads no requests: the names stand in and go nowhere.
_STAND_INS: Final = {"KAFKA_CONSUMER_GROUP": "none", REQUEST_TOPIC: "none"}


def settings_of(
    variables: Mapping[str, str], options: Mapping[str, str | None], *, with_kafka: bool = True
) -> Settings:
    """The settings that concern a user, options over variables; brokers given as an option hold for all topics.

    Raises:
        SettingsError: with one finding for everything that is wrong.
    """
    given = {name: value for name, value in options.items() if value is not None}
    chosen = {name: value for name, value in variables.items() if name.startswith(_OTHERS)}
    places = {name: variables[name] for name in _PLACES if variables.get(name, "").strip()}
    if BROKERS in given:
        places.pop(STATUS_BROKERS, None)
    places |= given
    if not with_kafka or BROKERS not in places:
        return load_settings(chosen)
    settings = load_settings({**_STAND_INS, **chosen, **places})
    return settings if REQUEST_TOPIC in places else settings.model_copy(update={"job_request_topic": None})
