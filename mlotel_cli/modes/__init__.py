"""What the commands do: each mode reads its configuration, runs a session and returns the summary."""
