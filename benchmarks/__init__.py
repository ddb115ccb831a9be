"""Measurements of the pipeline beside others; `make bench` runs them all."""
