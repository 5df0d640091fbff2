"""`python -m cador_trio` is the command `cador-trio`."""

from cador_trio.cli import main

main(prog_name="cador-trio")
