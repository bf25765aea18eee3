"""The run directory: its names, tables and run.json; how it is claimed, written, kept small and read back."""
