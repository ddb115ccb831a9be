"""A model as ONNX, written from its layers, and run in ONNX Runtime.

Source of the operators: https://onnx.ai/onnx/operators/. ONNX has the channels of an image before
its rows, TensorFlow after its columns; so images are transposed at the begin, and before the first
dense layer.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pipeline.core.files import whole_file
from pipeline.network.build import PIXEL_MAX, Description
from pipeline.network.layers import (
    Affine,
    BatchNorm,
    Conv,
    Dense,
    Dropout,
    LocalResponseNorm,
    Pool,
    Shape,
)

OPSET = 17
IR_VERSION = 8  # of early 2022: runtimes since then read it
TO_CHANNELS_FIRST, TO_CHANNELS_LAST = (0, 3, 1, 2), (0, 2, 3, 1)
ACTIVATIONS = {"relu": "Relu", "tanh": "Tanh"}

Weights = dict[str, NDArray[np.float32]]


class _Graph:
    """Nodes in order, each with one input from the node before and one output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.last = "images"

    def constant(self, name: str, values: Any) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def add(self, operator: str, name: str, *others: str, **attributes: Any) -> None:
        node = helper.make_node(operator, [self.last, *others], [name], name, **attributes)
        self.nodes.append(node)
        self.last = name


def make_onnx(description: Description, weights: Weights) -> onnx.ModelProto:
    """Return a model as ONNX.

    Parameters
    ----------
    description : Description
        Of a network for inference.
    weights : dict
        By name, such as ``"conv1/kernel"``, float32.

    Returns
    -------
    ModelProto
        From uint8 ``images`` (n, height, width, channels) to float32 ``logits`` and
        ``probabilities`` (n, classes). Its metadata has the classes' names.
    """
    graph = _Graph()
    graph.add("Cast", "floats", to=TensorProto.FLOAT)
    graph.add("Mul", "scale", graph.constant("one_level", np.float32(1 / PIXEL_MAX)))
    graph.add("Transpose", "channels_first", perm=TO_CHANNELS_FIRST)
    shape = Shape(*description.image_shape)
    if side := description.network.input_size:
        scales = np.array([1, 1, _scale(shape.height, side), _scale(shape.width, side)], np.float32)
        graph.add(
            "Resize", "resize", "", graph.constant("scales", scales), mode="linear",
            coordinate_transformation_mode="half_pixel",
        )  # fmt: skip
        shape = Shape(side, side, shape.channels)
    flat = False
    for place in description.place_layers():
        layer, name = place.layer, place.name
        own = {
            key.partition("/")[2]: array
            for key, array in weights.items()
            if key.startswith(f"{name}/")
        }
        match layer:
            case Conv():
                kernel = own["kernel"].transpose(3, 2, 0, 1)
                graph.add(
                    "Conv", f"{name}_sum", graph.constant(f"{name}_kernel", kernel),
                    graph.constant(f"{name}_bias", own["bias"]),
                    strides=[layer.stride] * 2,
                    pads=_pads(shape, place.shape, layer.kernel, layer),
                )  # fmt: skip
            case Pool():
                average = layer.type == "average_pool"
                graph.add(
                    "AveragePool" if average else "MaxPool", name,
                    kernel_shape=[layer.size] * 2, strides=[layer.stride] * 2,
                    pads=_pads(shape, place.shape, layer.size, layer),
                )  # fmt: skip
            case LocalResponseNorm():
                size = 2 * layer.depth_radius + 1
                graph.add(
                    "LRN", name, size=size, alpha=layer.alpha * size, beta=layer.beta,
                    bias=layer.bias,
                )  # fmt: skip
            case Affine():
                sides = (-1,) if flat else (-1, 1, 1)
                for operator, key in (("Mul", "scale"), ("Add", "shift")):
                    values = graph.constant(f"{name}_{key}_values", own[key].reshape(sides))
                    graph.add(operator, f"{name}_{key}", values)
            case Dense():
                if not flat:
                    graph.add("Transpose", "channels_last", perm=TO_CHANNELS_LAST)
                    graph.add("Flatten", "flat", axis=1)
                    flat = True
                graph.add(
                    "Gemm", f"{name}_sum", graph.constant(f"{name}_kernel", own["kernel"]),
                    graph.constant(f"{name}_bias", own["bias"]),
                )  # fmt: skip
            case Dropout() | BatchNorm():
                continue
        if isinstance(layer, Conv | Dense | Affine) and layer.activation in ACTIVATIONS:
            graph.add(ACTIVATIONS[layer.activation], name)
        shape = place.shape
    graph.nodes[-1].output[0] = graph.last = "logits"
    temperature = graph.constant("temperature", np.float32(description.temperature))
    graph.add("Div", "calibrated", temperature)
    graph.add("Softmax", "probabilities", axis=1)
    return _finish(graph, description)


def _scale(before: int, after: int) -> np.float32:
    """Return a scale that makes `before` pixels `after`; runtimes round their number down."""
    scale = np.float32(after / before)
    while before * float(scale) < after:
        scale = np.nextafter(scale, np.float32(np.inf))
    return scale


def _pads(before: Shape, after: Shape, window: int, layer: Conv | Pool) -> list[int]:
    """Return TensorFlow's padding: that of the tops and lefts, then of the bottoms and rights."""
    if layer.padding == "valid":
        return [0, 0, 0, 0]
    missing = [
        max((outputs - 1) * layer.stride + window - inputs, 0)
        for inputs, outputs in zip(before[:2], after[:2], strict=True)
    ]
    return [each // 2 for each in missing] + [each - each // 2 for each in missing]


def _finish(graph: _Graph, description: Description) -> onnx.ModelProto:
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", description.classes])
        for name in ("logits", "probabilities")
    ]
    images = helper.make_tensor_value_info(
        "images", TensorProto.UINT8, ["n", *description.image_shape]
    )
    model = helper.make_model(
        helper.make_graph(graph.nodes, description.variant, [images], outputs, graph.constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="alexnet-mnist",
    )
    names = description.class_names or [str(label) for label in range(description.classes)]
    metadata = {
        "dataset": description.dataset,
        "classes": json.dumps(names),
        "temperature": str(description.temperature),
    }
    helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    return model


def save_onnx(path: Path, model: onnx.ModelProto) -> None:
    """Write a model to a file."""
    with whole_file(path) as file:
        file.write(model.SerializeToString(deterministic=True))


class OnnxRuntime:
    """Runs an ONNX model on this machine's CPU.

    Parameters
    ----------
    content : bytes
        Of the file.
    """

    def __init__(self, content: bytes) -> None:
        self.session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the logits (n, classes) of images (n, height, width, channels)."""
        [logits] = self.session.run(["logits"], {"images": images})
        answer: NDArray[np.float32] = logits
        return answer
