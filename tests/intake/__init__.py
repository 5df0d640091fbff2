"""Tests of the doors: the decoder, and the HTTP door over real sockets."""
