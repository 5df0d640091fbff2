"""The secrets that tests use, in one place: whatever comes out of a daemon under test is searched for them.

Each is a text that appears nowhere else, so that to find one is to have found a leak. A test that needs another one
puts it here. What is no credential of anybody (a wrong one, a profile's name) may stay where it is used.
"""

from __future__ import annotations

from typing import Final

PASSWORD: Final = "hunter2"
OTHER_PASSWORD: Final = "hunter3"
API_TOKEN: Final = "token-of-the-api-9f31"
COLLECTOR_TOKEN: Final = "token-of-the-collector-77c0"
STORE_SECRET: Final = "the-secret"
GOOGLE_SECRET: Final = "google-secret"
VERSITY_ROOT_SECRET: Final = "versity-root-secret"
VERSITY_LIMITED_SECRET: Final = "versity-nobody-secret"
SEAWEED_ADMIN_SECRET: Final = "seaweed-admin-secret"
SEAWEED_LIMITED_SECRET: Final = "seaweed-writer-secret"
GOOGLE_LIKE_SECRET: Final = "google-like-secret"
KAFKA_PASSWORD: Final = "alice's own secret"
HUSHED: Final = "hush-"  # how credentials begin that are refused or wrong

SECRETS: Final = frozenset(value for name, value in dict(globals()).items() if name.isupper())
