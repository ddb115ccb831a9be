"""The command ``dvc-flow``, which is also ``python -m dvc_flow``."""

import sys

from dvc_flow.imports import importing


def main() -> int:
    """Run the command; return its exit code."""
    with importing():
        from dvc_flow.cli import main as command
    return command()


if __name__ == "__main__":
    sys.exit(main())
