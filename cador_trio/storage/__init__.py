"""Where a job's images go: which places a request may name, and the writing itself."""
