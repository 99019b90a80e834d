"""The program: `fastcifar` or `python -m fastcifar`."""

from __future__ import annotations

from fastcifar.cli import signals


def main() -> None:
    """Handle signals before the command line is imported, which takes a moment; then run it."""
    signals.install()
    from fastcifar.cli.app import main as run_command_line

    run_command_line()


if __name__ == "__main__":
    main()
