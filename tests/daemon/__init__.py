"""The daemon as operators meet it: a process with an environment, a port, signals and an exit code."""
