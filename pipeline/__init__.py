"""The pipeline: its stages and commands here, their parts in the packages below."""

import os

# TensorFlow and Keras read these when they are imported, so set them before any stage imports them.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # suppress TensorFlow's start-up log
os.environ["KERAS_BACKEND"] = "tensorflow"
# oneDNN's kernels; without AVX-512 TensorFlow disables them, and its own are slower.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
