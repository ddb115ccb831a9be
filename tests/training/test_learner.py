import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import softmax
from sklearn.metrics import accuracy_score, log_loss

from pipeline.network import build as network_build
from pipeline.training.learner import Learner, RunningMean, make_validation
from tests.helpers import CLASSES, SIDE, make_images, run_python
from tests.network.helpers import describe, network

BATCH_SIZE = 12


def build() -> keras.Model:
    """Return a network with normalisation and dropout, for `make_images`."""
    row = network(
        {"type": "conv", "filters": 4, "kernel": 3},
        {"type": "max_pool", "size": 2, "stride": 2},
        {"type": "lrn", "depth_radius": 1, "bias": 1.0, "alpha": 1e-4, "beta": 0.75},
        {"type": "dropout", "rate": 0.5},
        {"type": "dense", "units": 8},
    )
    return network_build.build(describe(row, (SIDE, SIDE, 1), CLASSES))


def learn(learner: Learner, steps: int) -> None:
    for _ in range(steps):
        images, labels = make_images(BATCH_SIZE, seed=learner.step)
        learner.learn(images, labels, 0.01)


def test_a_restored_learner_continues_to_the_same_bits() -> None:
    """2 steps, and 3 in another learner, end in the weights, moments, sums and dropout of 5 in one."""
    whole, first, second = (Learner(build(), BATCH_SIZE) for _ in range(3))
    learn(whole, 5)
    learn(first, 2)
    second.restore(first.step, first.arrays())
    learn(second, 3)
    assert second.step == whole.step == 5
    expected, found = whole.arrays(), second.arrays()
    assert expected.keys() == found.keys()
    assert {"conv1/kernel", "conv1/kernel/first_moment", "random_state/0", "running/loss"} <= set(
        found
    )
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    assert whole.running.take() == second.running.take()


def test_another_networks_state_is_rejected() -> None:
    """Arrays of another network cannot be restored."""
    learner = Learner(build(), BATCH_SIZE)
    arrays = learner.arrays()
    del arrays["conv1/kernel"]
    with pytest.raises(ValueError, match="not those of this network"):
        learner.restore(1, arrays)


def test_the_first_bad_step_is_remembered() -> None:
    """The first step whose loss is not finite is remembered, and later ones do not replace it."""
    learner = Learner(build(), BATCH_SIZE)
    learn(learner, 2)
    assert learner.first_bad_step == 0
    weight = learner.network.trainable_variables[-1]
    weight.assign(weight * np.nan)
    learn(learner, 2)
    assert learner.first_bad_step == 3


TWO_DEVICES = """
import pipeline
import numpy as np
import tensorflow as tf
from pipeline.network.device import Device
from pipeline.training.learner import Learner
from pipeline.network.build import build
from tests.network.helpers import described

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
tf.config.experimental.enable_op_determinism()
random = np.random.default_rng(0)
images = random.integers(0, 256, (32, 28, 28, 1), dtype=np.uint8)
labels = random.integers(0, 10, 32, dtype=np.uint8)
results = []
for count in (1, 2, 2):
    with Device("CPU", "logical", False, count).strategy(32).scope():
        learner = Learner(build(described("lenet5")), 32)
        for _ in range(3):
            learner.learn(images, labels, 1e-3)
        assert learner.strategy.num_replicas_in_sync == count
        means = learner.running.take()
        learner.restore(3, learner.arrays())
        results.append((learner.arrays(), means))
(alone, means), (shared, shared_means), (again, _) = results
for name in alone:
    np.testing.assert_allclose(shared[name], alone[name], atol=2e-6, err_msg=name)
    np.testing.assert_array_equal(shared[name], again[name], err_msg=name)
np.testing.assert_allclose(shared_means, means, rtol=1e-6)
"""


@pytest.mark.slow
def test_two_devices_share_a_batch_and_learn_what_one_learns() -> None:
    """Two logical devices share a batch and learn what one learns, with the same bits each time."""
    run_python(TWO_DEVICES)


def test_a_running_mean_restarts_once_it_is_taken() -> None:
    """A running mean weighs images equally, and restarts once it is taken."""
    running = RunningMean()
    logits = tf.constant([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]])
    running.add(tf.constant([1.0, 2.0]), logits[:2], tf.constant([0, 0]))
    running.add(tf.constant([6.0]), logits[2:], tf.constant([0]))
    assert list(running.take()) == pytest.approx([3.0, 2 / 3])
    running.add(tf.constant([1.0]), logits[:1], tf.constant([1]))
    assert list(running.take()) == [1.0, 0.0]


def test_validation_agrees_with_scikit_learn() -> None:
    """Validation loss and accuracy equal scikit-learn's, also with a smaller last batch."""
    split = make_images(30)
    network = build()
    measured = make_validation(network, split, batch_size=7)()
    logits = network(split.images).numpy()
    assert measured.accuracy == accuracy_score(split.labels, logits.argmax(axis=1))
    expected = log_loss(split.labels, softmax(logits.astype(float), axis=1), labels=range(3))
    assert measured.loss == pytest.approx(expected, rel=1e-5)
