"""The pipeline: its stages and commands here, their parts in the packages below.

TensorFlow and Keras read settings from the environment and from ``~/.keras/keras.json``, and many
of them change results. They are made here, before a stage imports either library.
"""

import os

# Kernels, precision, threads and compilation, as a user's shell may set them for other programs.
_CHANGE_RESULTS = (
    "DNNL_", "KERAS_", "NVIDIA_TF32_", "ONEDNN_", "TF_AUTO_", "TF_CONV2D_", "TF_CUDNN_",
    "TF_DISABLE_", "TF_ENABLE_", "TF_FP16_", "TF_MATMUL_", "TF_NUM_", "TF_ONEDNN_", "TF_OVERRIDE_",
    "TF_XLA_", "XLA_",
)  # fmt: skip

for _name in [name for name in os.environ if name.startswith(_CHANGE_RESULTS)]:
    del os.environ[_name]
os.environ["KERAS_HOME"] = os.devnull  # a folder without keras.json
os.environ["KERAS_BACKEND"] = "tensorflow"
# oneDNN's kernels; without AVX-512 TensorFlow disables them, and its own are slower.
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # suppress TensorFlow's start-up log
