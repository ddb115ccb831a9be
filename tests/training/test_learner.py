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


DROPOUT = {"type": "dropout", "rate": 0.5}
NORM = {"type": "batch_norm", "momentum": 0.9}


def build(*more: dict[str, object], seed: int = 0) -> keras.Model:
    """Return a network with normalisation, and `more` layers, for `make_images`."""
    row = network(
        {"type": "conv", "filters": 4, "kernel": 3},
        {"type": "max_pool", "size": 2, "stride": 2},
        {"type": "lrn", "depth_radius": 1, "bias": 1.0, "alpha": 1e-4, "beta": 0.75},
        *more,
        {"type": "dense", "units": 8},
    )
    return network_build.build(describe(row, (SIDE, SIDE, 1), CLASSES), seed=seed)


def new_learner(averaging: float | None = None) -> Learner:
    """Return a learner of a network that has every kind of state."""
    return Learner(build(NORM, DROPOUT), BATCH_SIZE, averaging)


def learn(learner: Learner, steps: int, at_once: int = 1) -> None:
    """Make some steps, of which each has images of its own."""
    for first in range(0, steps, at_once):
        seeds = range(learner.step, learner.step + min(at_once, steps - first))
        images, labels = zip(*(make_images(BATCH_SIZE, seed) for seed in seeds), strict=True)
        learner.learn(np.stack(images), np.stack(labels), [0.01] * len(seeds))


def assert_equal_arrays(first: Learner, second: Learner) -> None:
    expected, found = first.arrays(), second.arrays()
    assert expected.keys() == found.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def assert_same(first: Learner, second: Learner) -> None:
    assert_equal_arrays(first, second)
    assert first.step == second.step
    assert first.running.take() == second.running.take()


STATE = {
    "conv1/kernel", "conv1/kernel/first_moment", "norm1/mean", "norm1/gamma/second_moment",
    "random_state/0", "running/loss",
}  # fmt: skip
AVERAGES = {"conv1/kernel/average", "norm1/mean/average", "norm1/variance/average"}


@pytest.mark.parametrize(("averaging", "state"), [(None, STATE), (0.9, STATE | AVERAGES)])
def test_a_restored_learner_continues_to_the_same_bits(
    averaging: float | None, state: set[str]
) -> None:
    """2 steps, and 3 in another learner, end in the weights, moments, sums and dropout of 5 in one."""
    whole, first, second = (new_learner(averaging) for _ in range(3))
    learn(whole, 5)
    learn(first, 2)
    second.restore(first.step, first.arrays())
    learn(second, 3)
    assert state <= set(whole.arrays())
    assert second.step == 5
    assert_same(whole, second)


@pytest.mark.parametrize("at_once", [2, 5])
def test_steps_made_at_once_are_those_made_one_by_one(at_once: int) -> None:
    """Several steps in one call end in the same bits as the same steps in calls of their own."""
    one_by_one, together = new_learner(0.9), new_learner(0.9)
    learn(one_by_one, 5)
    learn(together, 5, at_once)
    assert_same(one_by_one, together)


@pytest.mark.parametrize("averaging", [None, 0.9])
def test_a_restarted_learner_is_a_new_one(averaging: float | None) -> None:
    """With the weights of a fresh network a used learner learns what a new one learns."""
    used = new_learner(averaging)
    learn(used, 3)
    used.restart(build(NORM, DROPOUT, seed=4))
    assert (used.step, used.first_bad_step) == (0, 0)
    fresh = Learner(build(NORM, DROPOUT, seed=4), BATCH_SIZE, averaging)
    assert_equal_arrays(fresh, used)
    learn(used, 3)
    learn(fresh, 3)
    assert_same(fresh, used)


def test_two_halves_of_a_batch_learn_what_the_whole_learns() -> None:
    """A batch computed in two parts gives the weights of the whole one, but for rounding."""
    whole, halves = Learner(build(), BATCH_SIZE), Learner(build(), BATCH_SIZE, parts=2)
    learn(whole, 3)
    learn(halves, 3)
    for name, array in whole.arrays().items():
        np.testing.assert_allclose(halves.arrays()[name], array, rtol=1e-4, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("decay", [0.3, 0.999])
def test_the_moving_average_is_that_of_its_formula(decay: float) -> None:
    """The average of each weight, and of each batch statistic, follows its formula step by step."""
    learner = new_learner(decay)
    weights = learner.network.weights
    expected = [weight.numpy().astype(float) for weight in weights]
    for step in range(1, 7):
        learn(learner, 1)
        share = 1 - min(decay, (1 + step) / (10 + step))
        expected = [
            average + share * (weight.numpy() - average)
            for weight, average in zip(weights, expected, strict=True)
        ]
    averages = learner.arrays()
    moved = 0
    for weight, average in zip(weights, expected, strict=True):
        found = averages[f"{weight.path}/average"]
        np.testing.assert_allclose(found, average, rtol=1e-5, atol=1e-6, err_msg=weight.path)
        moved += not np.array_equal(found, weight.numpy())
    assert moved == len(weights)


def test_averaging_changes_no_step() -> None:
    """The weights under training are those without an average."""
    plain, averaging = new_learner(), new_learner(0.9)
    learn(plain, 4)
    learn(averaging, 4)
    found = averaging.arrays()
    for name, array in plain.arrays().items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_the_averages_are_in_the_network_only_while_they_are_asked_for() -> None:
    """Inside the block the network has the averages, and afterwards, even an error, its weights."""
    learner = new_learner(0.9)
    learn(learner, 3)
    before = learner.arrays()
    weights = learner.network.weights
    with pytest.raises(ZeroDivisionError), learner.averaged():
        for weight in weights:
            np.testing.assert_array_equal(weight.numpy(), before[f"{weight.path}/average"])
        raise ZeroDivisionError
    for name, array in learner.arrays().items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)
    with new_learner().averaged():  # without an average nothing is exchanged
        pass


def test_another_networks_state_is_rejected() -> None:
    """Arrays of another network cannot be restored."""
    learner = new_learner()
    arrays = learner.arrays()
    del arrays["conv1/kernel"]
    with pytest.raises(ValueError, match="not those of this network"):
        learner.restore(1, arrays)


def test_the_first_bad_step_is_remembered() -> None:
    """The first step whose loss is not finite is remembered, and later ones do not replace it."""
    learner = new_learner()
    learn(learner, 2)
    assert learner.first_bad_step == 0
    weight = learner.network.trainable_variables[-1]
    weight.assign(weight * np.nan)
    learn(learner, 3, at_once=2)
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
        learner.learn(np.stack([images] * 3), np.stack([labels] * 3), [1e-3] * 3)
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
    network = build(NORM)
    validate = make_validation(network, split, batch_size=7)
    for _ in range(2):  # the network as it is then
        measured, found = validate()
        logits = network(split.images).numpy()
        assert measured.accuracy == accuracy_score(split.labels, logits.argmax(axis=1))
        expected = log_loss(split.labels, softmax(logits.astype(float), axis=1), labels=range(3))
        assert measured.loss == pytest.approx(expected, rel=1e-5)
        np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-5)
        learn(Learner(network, BATCH_SIZE), 2)
