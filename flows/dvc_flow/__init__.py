"""A parallel ``dvc repro``: DVC's graph as a Prefect flow. It orchestrates and computes nothing."""
