"""What the list of parts and the audit of the dependencies say."""
