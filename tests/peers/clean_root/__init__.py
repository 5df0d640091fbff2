"""A container engine's work without one: a Containerfile's steps in an empty root, and its result run in namespaces.

For root on Linux alone. No image is fetched: base.py makes what stands for the base image from what the machine has.
"""
