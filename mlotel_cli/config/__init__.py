"""The configuration of a run: its schema, its checks, its secrets, and the messages about mistakes in it."""
