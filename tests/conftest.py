"""Fixtures that every room's tests may ask for."""

pytest_plugins = ["tests.peers.object_store_fixtures", "tests.peers.pesto_fixtures"]
