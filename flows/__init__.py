"""Prefect flows that run dvc.yaml's graph; they orchestrate, and compute nothing."""
