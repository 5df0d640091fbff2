"""The doors that jobs come in by, and the one decoder that they share."""
