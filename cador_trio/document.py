"""The merged document of a job's results, as an answer or a message holds it: pieces in order, nothing copied.

Pure. A piece is bytes, or a Body whose bytes belong there; whoever sends the document reads bodies as it can.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from cador_trio.job import Body, JsonObject, Product, Result
from cador_trio.json_text import write

Piece = bytes | Body
LinkOf = Callable[[Result], JsonObject]


def pieces(product: Product, link_of: LinkOf) -> Iterator[Piece]:
    """`{<output>: <value>, …}`, or the one value of a whole answer.

    What is in a store is its reference; an image that we hold is what `link_of` says. A whole answer that is in a store
    is `{"output": reference}` (wire contract, 3.2).
    """
    if product.whole:
        (only,) = product.results
        if only.encoding != "none" and only.reference is None:
            yield _value(only, link_of)
            return
    opening = b"{"
    for name, output in product.outputs.items():
        yield opening + write(name) + b":"
        yield from _array(output, link_of) if isinstance(output, tuple) else (_value(output, link_of),)
        opening = b","
    yield b"}" if product.outputs else b"{}"


def size_of(parts: list[Piece]) -> int:
    """Bytes of the document, for Content-Length and size limits."""
    return sum(len(piece) if isinstance(piece, bytes) else piece.size for piece in parts)


def _array(results: tuple[Result, ...], link_of: LinkOf) -> Iterator[Piece]:
    opening = b"["
    for result in results:
        yield opening
        yield _value(result, link_of)
        opening = b","
    yield b"]" if results else b"[]"


def _value(result: Result, link_of: LinkOf) -> Piece:
    if result.reference is not None:
        return write(result.reference)
    if result.encoding == "none" or result.body is None:
        return write(link_of(result))
    return result.body
