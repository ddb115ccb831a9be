"""The pipeline's stages: download, preprocess, train, evaluate and report."""

import os

# Read by TensorFlow and Keras while they are imported, so set before any stage can import them.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # errors only: it greets with pages
os.environ["KERAS_BACKEND"] = "tensorflow"
# oneDNN's kernels; without AVX-512 TensorFlow leaves them off, and its own are slower.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
