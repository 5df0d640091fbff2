"""Fixtures that every room's tests may ask for."""

from hypothesis import settings

# How long an example takes says more about the machine than about the code.
settings.register_profile("cador-trio", deadline=None)
settings.load_profile("cador-trio")

pytest_plugins = ["tests.peers.object_store_fixtures", "tests.peers.pesto_fixtures"]
