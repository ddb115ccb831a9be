"""Check params.yaml before anything runs: its sections, and its names, which DVC puts in paths."""

from pipeline.params import Params
from pipeline.stage import run_stage


def main() -> None:
    """Check sections and names; each stage checks its own section's values when it runs."""
    Params()


if __name__ == "__main__":
    run_stage(main)
