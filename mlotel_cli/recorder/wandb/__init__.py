"""The W&B sink."""
