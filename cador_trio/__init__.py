"""A Trio sidecar that turns a bare Earth-observation algorithm container into a dependable service."""

from importlib.metadata import version

__version__ = version("cador-trio")
