"""What is made of an answer: pure and vectorised, no network, no clock, no trio."""
