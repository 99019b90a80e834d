"""The program: `fastcifar` or `python -m fastcifar`."""

from __future__ import annotations

import sys

from fastcifar.cli import signals


def main() -> None:
    """Handle signals before the command line is imported, which takes a moment; then run it."""
    signals.install()
    try:
        from fastcifar.cli.app import main as run_command_line
    except KeyboardInterrupt:
        signals.caught()
        print("Interrupted.", file=sys.stderr)
        sys.exit(signals.exit_code())
    run_command_line()


if __name__ == "__main__":
    main()
