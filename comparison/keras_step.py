"""The training step of keras_impl, which `fit` makes there, as a function that can be called, timed and looked into."""

from common.device import tf
from training.devices import on_every_replica


def make_train_step(code, model, config, optimizer=None):
    """step(images, masks) -> scalar loss, weights updated, as `make_train_step` of the other two.

    code: the column's functions, or `training.devices.variants` of them. A test holds it against `fit`, bit for bit.
    """
    optimizer, loss_of = optimizer or code.make_optimizer(model, config), code.SegmentationLoss(config)

    @tf.function(jit_compile=config.training.jit, autograph=False)
    @on_every_replica
    def train_step(images, masks):
        weights = model.trainable_variables
        with tf.GradientTape() as tape:
            logits = model(images, training=True)
            loss = loss_of.call(masks, logits)
        gradients = tape.gradient(loss, weights)
        with tf.name_scope("optimizer"):
            optimizer.apply(gradients, weights)
        return loss

    return train_step
