"""A Prefect flow that runs dvc.yaml's graph; it orchestrates and computes nothing."""
