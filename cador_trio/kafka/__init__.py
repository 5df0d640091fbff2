"""The one room that knows Kafka: records to jobs, and what came of them to messages, exactly once."""
