"""What the command line does beside serving. This room talks to a daemon from outside, as any user would."""
