import numpy as np
import pytest
from scipy.optimize import brute
from scipy.special import log_softmax, softmax
from sklearn.metrics import log_loss

from pipeline.training.temperature import LARGEST, fit_temperature


def drawn_from(logits: np.ndarray, seed: int = 1) -> np.ndarray:
    """Return a label for each row, drawn with the probabilities that its logits give."""
    edges = softmax(logits, axis=1).cumsum(axis=1)
    draws = np.random.default_rng(seed).random((len(logits), 1))
    labels: np.ndarray = (draws > edges[:, :-1]).sum(axis=1)
    return labels.astype(np.uint8)


def honest(images: int, classes: int = 10) -> np.ndarray:
    logits: np.ndarray = np.random.default_rng(0).normal(0, 2, (images, classes))
    return logits


@pytest.mark.parametrize("temperature", [0.25, 1.0, 1.7, 6.0])
def test_a_known_temperature_is_found(temperature: float) -> None:
    """Of logits that are too large by a known factor, that factor is found."""
    logits = honest(20_000)
    scaled = (logits * temperature).astype(np.float32)
    assert fit_temperature(scaled, drawn_from(logits)) == pytest.approx(temperature, rel=0.03)


@pytest.mark.parametrize("images", [30, 300])
@pytest.mark.parametrize("classes", [2, 7])
def test_the_loss_is_smallest_there(images: int, classes: int) -> None:
    """A brute-force search over SciPy's and scikit-learn's loss finds the same temperature."""
    logits = honest(images, classes).astype(np.float32)
    labels = drawn_from(logits / 1.6)

    def loss(temperature: np.ndarray) -> float:
        probabilities = softmax(logits.astype(float) / temperature.item(), axis=1)
        return float(log_loss(labels, probabilities, labels=range(classes)))

    expected = brute(loss, [slice(0.1, 10, 0.1)], disp=False).item()
    assert fit_temperature(logits, labels) == pytest.approx(expected, abs=2e-3)


def test_no_image_changes_its_class() -> None:
    """Divided by the temperature, logits have their largest value where they had it."""
    logits = honest(500).astype(np.float32)
    temperature = fit_temperature(logits, drawn_from(logits / 3))
    assert temperature > 2
    wide = logits.astype(np.float64)
    np.testing.assert_array_equal((wide / temperature).argmax(axis=1), wide.argmax(axis=1))


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("size", [1.0, 40.0, 1e4])
def test_a_few_images_stay_within_the_bounds(right: bool, size: float) -> None:
    """Images that are all right, or all wrong, would ask for 0 or for infinity."""
    logits = size * np.eye(3, dtype=np.float32)
    labels = np.arange(3, dtype=np.uint8) if right else np.array([1, 2, 0], np.uint8)
    temperature = fit_temperature(logits, labels)
    assert 1 / LARGEST <= temperature <= LARGEST
    if size < 1e4:
        assert temperature == pytest.approx(1 / LARGEST if right else LARGEST, rel=0.6)


def test_it_has_four_digits_and_is_the_same_each_time() -> None:
    """The temperature is written into a model's header: short, and from the same logits equal."""
    logits = honest(1000).astype(np.float32)
    labels = drawn_from(logits / 1.234567)
    found = fit_temperature(logits, labels)
    assert found == float(f"{found:.4g}") == fit_temperature(logits, labels)


def test_the_calibrated_loss_is_never_larger() -> None:
    """On the images that determine it, the temperature makes no loss larger."""
    for seed in range(20):
        logits = np.random.default_rng(seed).normal(0, 3, (40, 4)).astype(np.float32)
        labels = drawn_from(logits / 2, seed)
        rows = np.arange(len(labels))
        before, after = (
            -log_softmax(logits.astype(float) / each, axis=1)[rows, labels].mean()
            for each in (1.0, fit_temperature(logits, labels))
        )
        assert after <= before + 1e-6
