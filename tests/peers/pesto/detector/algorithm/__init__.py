"""A small detector with one output of every kind that PESTO knows."""
