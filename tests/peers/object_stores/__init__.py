"""Object stores as test peers: SeaweedFS and versitygw, which are real, and an S3 server that misbehaves as told.

The real ones run as processes of their own on loopback ports and check signatures; what is in them is looked up with
boto3, which shares no code with the product. The misbehaving one runs in the test's own process.
"""
