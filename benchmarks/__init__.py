"""Measurements beside a peer, as ratios; each is `python -m benchmarks.NAME` and bounded in count and time."""
