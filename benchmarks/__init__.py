"""Measurements of the pipeline, each one a command."""
