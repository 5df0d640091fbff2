"""The product's rooms against their neighbours, fake and real: the same cases wherever both can do them."""
