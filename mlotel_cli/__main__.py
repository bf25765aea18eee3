"""`python -m mlotel_cli` is the `mlotel` command."""

from mlotel_cli.cli import app

if __name__ == "__main__":
    app(prog_name="mlotel")
