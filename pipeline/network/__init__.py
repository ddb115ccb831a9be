"""Networks: layers as params.yaml spells them, built in Keras, saved, and run in chunks."""
