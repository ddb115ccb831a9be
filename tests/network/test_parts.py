import numpy as np
import pytest

from pipeline.network.build import build
from pipeline.network.device import Device
from pipeline.network.parts import (
    MOST_STEPS,
    PARTS,
    Layout,
    count_parts,
    forward_in_parts,
    lay_out,
    multiply_adds,
)
from tests.helpers import CLASSES, SIDE, make_images, run_python
from tests.network.helpers import describe, described, network

CPU, GPU = Device("CPU", "a CPU", False), Device("GPU", "a GPU", True)
DENSE = {"type": "dense", "units": 8}


def test_the_multiplications_of_lenet_are_counted() -> None:
    """Each layer of LeNet-5 multiplies once for each weight and each place that it is applied to."""
    convolutions = 28 * 28 * 6 * 5 * 5 + 10 * 10 * 16 * 5 * 5 * 6
    assert multiply_adds(described("lenet5")) == convolutions + 400 * 120 + 120 * 84 + 84 * 10


@pytest.mark.parametrize(
    ("name", "device", "parts"),
    [
        ("lenet5", CPU, PARTS), ("lenet5", GPU, 1), ("deotte", CPU, 1), ("alexnet_norm", CPU, 1),
        ("alexnet_2012", CPU, 1),
    ],
)  # fmt: skip
def test_small_networks_are_computed_in_parts(name: str, device: Device, parts: int) -> None:
    """A small network is computed in parts on a CPU; a larger one, or one on a GPU, is not."""
    assert count_parts(described(name), device) == parts
    assert lay_out(described(name), 64, device).parts == parts


@pytest.mark.parametrize(
    ("layers", "batch_size", "layout"),
    [
        ([DENSE], 16, Layout(PARTS, MOST_STEPS)),
        ([DENSE], 15, Layout(1, MOST_STEPS)),
        ([DENSE, {"type": "batch_norm"}], 16, Layout(1, MOST_STEPS)),
    ],
)
def test_a_batch_is_divided_only_if_its_parts_make_the_whole(
    layers: list[dict[str, object]], batch_size: int, layout: Layout
) -> None:
    """An odd batch is not divided, and neither is one whose statistics a batch norm needs."""
    description = describe(network(*layers), (SIDE, SIDE, 1), CLASSES)
    assert lay_out(description, batch_size, CPU) == layout


def test_large_networks_make_few_steps_at_once() -> None:
    """However large a network and its batch, at least one step is made in a call."""
    steps = [lay_out(described("deotte"), size, CPU).steps for size in (1, 16, 64, 4096)]
    assert steps == sorted(steps, reverse=True)
    assert (steps[0], steps[-1]) == (MOST_STEPS, 1)


@pytest.mark.parametrize("images", [1, 2, 7, 8])
@pytest.mark.parametrize("parts", [1, 2])
def test_parts_give_the_logits_of_the_whole(images: int, parts: int) -> None:
    """The logits are those of all images together, also if they cannot be divided."""
    built = build(describe(network(DENSE), (SIDE, SIDE, 1), CLASSES))
    some = make_images(images).images
    logits = forward_in_parts(built, some, parts)
    np.testing.assert_allclose(logits, built(some), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_an_operation_uses_one_core_if_there_are_several_parts() -> None:
    """The threads of an operation are one for several parts, and those of all cores otherwise."""
    code = """
import pipeline
from pipeline.network.framework import tf
from pipeline.network.parts import use_cores
for parts in (2, 1):
    use_cores(parts)
    print(tf.config.threading.get_intra_op_parallelism_threads())
"""
    assert run_python(code).split() == ["1", "0"]
