import keras
import numpy as np
import tensorflow as tf

from pipeline.optimizer import BETA_1, BETA_2, EPSILON, FusedAdam


def test_it_computes_what_kerass_adam_computes() -> None:
    """Twenty steps end where those of Keras's Adam end."""
    random = np.random.default_rng(0)
    begin = random.normal(size=(5, 3)).astype(np.float32)
    gradients = random.normal(size=(20, 5, 3)).astype(np.float32)
    ours, theirs = keras.Variable(begin), keras.Variable(begin)
    fused = FusedAdam([ours])
    adam = keras.optimizers.Adam(0.01, BETA_1, BETA_2, EPSILON)
    adam.build([theirs])
    for step, gradient in enumerate(gradients, start=1):
        fused.apply([tf.constant(gradient)], tf.constant(0.01), tf.constant(float(step)))
        adam.apply([tf.constant(gradient)])
    assert not np.allclose(begin, np.asarray(ours))
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=1e-5, atol=1e-6)
