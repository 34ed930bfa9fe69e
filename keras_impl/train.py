"""Train the U-Net written in Keras 3: compile, fit and a callback."""

import sys
from pathlib import Path

if __name__ == "__main__":  # --help and what does not fit need no TensorFlow
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python keras_impl/train.py`
    from training.options import before_tensorflow, run_script

    before_tensorflow("keras_impl", __doc__)

from common.losses import probabilities, segmentation_loss
from common.padding import any_size
from common.replicas import average, on_every_replica
from data.loader import load_examples
from keras_impl.model import UNet, named_weights
from training.run import Run
from training.start import train_as_told

import keras
import numpy as np
import tensorflow as tf

# --- by hand: `fit` owns the loop, so the loss and the run are plugged in ---


class SegmentationLoss(keras.losses.Loss):
    """For `compile`. Keras casts masks and logits to its dtype, float32 by default."""

    def __init__(self, config):
        super().__init__(dtype=config.network.variable_dtype)
        self.config = config

    def call(self, masks, logits):
        return segmentation_loss(masks, logits, self.config)


class RunCallback(keras.callbacks.Callback):
    """Tells the run about every step of `fit`."""

    def __init__(self, run):
        super().__init__()
        self.run = run

    def on_train_batch_end(self, batch, logs=None):
        self.run.end_step(np.squeeze(logs["loss"]))
        self.model.reset_metrics()  # Keras logs the mean since the last reset
        self.model.stop_training = self.run.done


# --- training ---


def make_optimizer(model, config):
    """The optimizer that `config` names; its `learning_rate` can be assigned."""
    settings, weights = config.training, model.trainable_variables
    lr, clip_norm = settings.learning_rate, settings.clip_norm
    if settings.optimizer == "adam":
        beta_1, beta_2, epsilon = settings.beta_1, settings.beta_2, settings.epsilon
        optimizer = keras.optimizers.Adam(lr, beta_1, beta_2, epsilon, global_clipnorm=clip_norm)
    else:
        optimizer = keras.optimizers.SGD(lr, settings.momentum, global_clipnorm=clip_norm)
    if clip_norm and (n := tf.distribute.get_strategy().num_replicas_in_sync) > 1:
        # Keras clips each device's gradients and sums up what is left: here each gets their mean,
        # clipped to a share, so that the sum is that of all, clipped
        apply, optimizer.global_clipnorm = optimizer.apply, clip_norm / n
        optimizer.apply = lambda gradients, weights: apply(average(gradients), weights)
    optimizer.build(weights)  # makes the moments now: a checkpoint may fill them
    return optimizer


def named_state(model, optimizer):
    """Canonical name of the weight and "/m" or "/v" -> variable; "iterations": the steps made."""
    state = {"iterations": optimizer.iterations.value}
    paths = [weight.path for weight in model.trainable_variables]
    # the moments of "down0_conv1/kernel" have "down0_conv1_kernel" in their names
    names = {path.replace("/", "_"): path.replace("_", "/", 1) for path in paths}
    for variable in optimizer.variables:
        path, _, slot = variable.name.rpartition("_")
        if path in names:
            state[f"{names[path]}/{slot[0]}"] = variable.value  # "momentum": m, "velocity": v
    return state


def make_train_step(model, config, optimizer=None):
    """step(images, masks) -> scalar loss, weights updated; both as `data.loader` gives them.

    `train` does not need it: it is what `fit` does, for who compares or times steps.
    """
    optimizer = optimizer or make_optimizer(model, config)

    @tf.function(jit_compile=config.training.jit, autograph=False)  # no `if` asks a tensor
    @on_every_replica
    def train_step(images, masks):
        weights = model.trainable_variables
        with tf.GradientTape() as tape:
            logits = model(images, training=True)
            loss = segmentation_loss(masks, logits, config)
        gradients = tape.gradient(loss, weights)
        with tf.name_scope("optimizer"):
            optimizer.apply(gradients, weights)  # clips them too, as `make_optimizer` told it to
        return loss

    return train_step


def make_eval_step(model, config):
    """step(images, masks) -> (scalar loss, probabilities [N, H, W, classes]), for any size."""

    @tf.function(jit_compile=config.training.jit, reduce_retracing=True, autograph=False)
    def eval_step(images, masks):
        logits = any_size(model, images, config.network)
        return segmentation_loss(masks, logits, config), probabilities(logits)

    return eval_step


def train(config):
    """One run, from the files on disk to the pictures of its results."""
    config, train_set, val_set = load_examples(config)  # config: with what the data says
    model = UNet(config.network)
    optimizer = make_optimizer(model, config)
    model.compile(optimizer, SegmentationLoss(config), jit_compile=config.training.jit)
    weights, state = named_weights(model), named_state(model, optimizer)
    eval_step = make_eval_step(model, config)
    with Run("keras_impl", config, train_set, val_set, weights, state, optimizer, eval_step) as run:
        if not run.done:  # a run that has stopped early: `fit` would make one more step
            model.fit(
                run.batches, shuffle=False, verbose=0,  # the loader shuffles, the run prints
                epochs=config.training.epochs, steps_per_epoch=run.steps_per_epoch,
                initial_epoch=run.step // run.steps_per_epoch, callbacks=[RunCallback(run)],
            )  # fmt: skip
        run.finish()


def main(argv=None):
    train_as_told("keras_impl", train, argv, __doc__)


if __name__ == "__main__":
    run_script(main)
