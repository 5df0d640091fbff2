"""A real PESTO as a test peer: its environment, its launcher, and the example algorithm that it serves.

PESTO itself is never imported here: its pins are old and live in an environment of their own (`environment.py`).
Only `serve.py` runs there.
"""
