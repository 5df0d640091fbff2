"""The example algorithm in PESTO's layout: the package `algorithm` beside the descriptors in `pesto`."""
