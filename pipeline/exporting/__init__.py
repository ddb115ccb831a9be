"""Models for other runtimes: ONNX, and TensorFlow's SavedModel."""
