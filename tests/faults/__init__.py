"""Real faults, and what is promised of each; docs/reliability.md has the list."""
