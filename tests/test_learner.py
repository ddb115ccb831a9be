import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.metrics import accuracy_score, log_loss

from pipeline import model
from pipeline.learner import Learner, RunningMean, make_validation
from pipeline.metrics import log_softmax
from tests.conftest import make_images, run_python

BATCH_SIZE = 12


def build(seed: int = 0) -> keras.Model:
    """Return a network with normalisation and dropout, for `make_images`."""
    return model.build(
        model.Description.model_validate(
            {
                "dataset": "tiny", "variant": "tiny_conv", "image_shape": [12, 12, 1], "classes": 3,
                "network": {
                    "input_size": None, "initializer": {"type": "he_normal"},
                    "layers": [
                        {"type": "conv", "filters": 4, "kernel": 3},
                        {"type": "max_pool", "size": 2, "stride": 2},
                        {"type": "lrn", "depth_radius": 1, "bias": 1.0, "alpha": 1e-4, "beta": 0.75},
                        {"type": "dropout", "rate": 0.5},
                        {"type": "dense", "units": 8},
                    ],
                },
            }
        ),
        seed=seed,
    )  # fmt: skip


def learn(learner: Learner, steps: int) -> None:
    for _ in range(steps):
        images, labels = make_images(BATCH_SIZE, seed=learner.step)
        learner.learn(images, labels, 0.01)


def test_one_that_is_taken_up_goes_on_to_the_same_bits() -> None:
    """Weights, moments, sums and dropout after 2 + 3 steps in two learners are those of 5 in one."""
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


def test_another_networks_state_is_refused() -> None:
    """What is not this network's is not taken up."""
    learner = Learner(build(), BATCH_SIZE)
    arrays = learner.arrays()
    del arrays["conv1/kernel"]
    with pytest.raises(ValueError, match="not those of this network"):
        learner.restore(1, arrays)


def test_the_first_loss_that_is_no_number_is_remembered() -> None:
    """The step is kept, and later ones do not replace it."""
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
from pipeline.device import Device
from pipeline.learner import Learner
from tests.conftest import make_images
from tests.test_model import described
import keras

from pipeline import model

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
tf.config.experimental.enable_op_determinism()
random = np.random.default_rng(0)
images = random.integers(0, 256, (32, 28, 28, 1), dtype=np.uint8)
labels = random.integers(0, 10, 32, dtype=np.uint8)
results = []
for count in (1, 2, 2):
    with Device("CPU", "logical", False, count).strategy(32).scope():
        learner = Learner(model.build(described("lenet5")), 32)
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
    """On two logical devices a batch is shared: the same sums, and the same bits each time."""
    run_python(TWO_DEVICES)


def test_a_running_mean_begins_again_once_it_is_taken() -> None:
    """A running mean weighs images equally, and begins again once it is taken."""
    running = RunningMean()
    logits = tf.constant([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]])
    running.add(tf.constant([1.0, 2.0]), logits[:2], tf.constant([0, 0]))
    running.add(tf.constant([6.0]), logits[2:], tf.constant([0]))
    assert list(running.take()) == pytest.approx([3.0, 2 / 3])
    running.add(tf.constant([1.0]), logits[:1], tf.constant([1]))
    assert list(running.take()) == [1.0, 0.0]


def test_validation_agrees_with_scikit_learn() -> None:
    """Validation loss and accuracy are scikit-learn's, in batches with a ragged tail."""
    split = make_images(30)
    network = build()
    measured = make_validation(network, split, batch_size=7)()
    logits = network(split.images).numpy()
    assert measured.accuracy == accuracy_score(split.labels, logits.argmax(axis=1))
    expected = log_loss(split.labels, np.exp(log_softmax(logits)), labels=range(3))
    assert measured.loss == pytest.approx(expected, rel=1e-5)
