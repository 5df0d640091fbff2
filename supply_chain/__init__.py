"""What the product is made of, for those who answer for it: the list of its parts, and what is known against them."""
