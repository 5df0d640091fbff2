"""Kafka as a test peer: a real broker, which alone has transactions, and librdkafka's mock cluster.

What is in a topic or committed by a group is looked up with clients made for one question (`clients`), which share no
code with the product.
"""
