"""Licence-plate reading on rendered traffic video: three small torch models evaluated by mlotel."""
