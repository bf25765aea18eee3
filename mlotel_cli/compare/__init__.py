"""`mlotel compare`: two runs side by side."""
