"""Benchmarks of the pipeline, alone and against Keras and PyTorch; `make bench` runs them all."""
