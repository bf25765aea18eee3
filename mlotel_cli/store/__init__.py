"""The run directory: this package claims it, writes it, keeps it small and reads it back."""
