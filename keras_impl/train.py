"""Train the U-Net written in Keras 3: compile, fit and a callback."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python keras_impl/train.py`

from common.cli import run_script
from common.losses import probabilities, segmentation_loss
from common.padding import any_size
from data.loader import load_examples
from keras_impl.model import UNet, named_weights
from training.run import Run
from training.start import train_as_told

import keras
import tensorflow as tf

# --- what raw operations and tf.layers do not need ---


class SegmentationLoss(keras.losses.Loss):
    """`segmentation_loss` as `compile` takes it. Without a dtype Keras casts logits to float32."""

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
        self.run.end_step(logs["loss"])
        self.model.reset_metrics()  # Keras logs the mean since the last reset
        self.model.stop_training = self.run.done


# --- training ---


def make_optimizer(model, config):
    """The optimizer that `config` names; its `learning_rate` can be assigned."""
    weights, training = model.trainable_variables, config.training
    lr, clip_norm = training.learning_rate, training.clip_norm
    if training.optimizer == "adam":
        optimizer = keras.optimizers.Adam(
            lr, training.beta_1, training.beta_2, training.epsilon, global_clipnorm=clip_norm
        )
    else:
        optimizer = keras.optimizers.SGD(lr, training.momentum, global_clipnorm=clip_norm)
    optimizer.build(weights)  # now, for a checkpoint to be read into
    return optimizer


def named_state(model, optimizer):
    """Canonical name of the weight and "/m" or "/v" -> variable; "iterations": the steps made."""
    state = {"iterations": optimizer.iterations.value}
    names = {
        w.path.replace("/", "_"): w.path.replace("_", "/", 1) for w in model.trainable_variables
    }
    for variable in optimizer.variables:
        path, _, slot = variable.name.rpartition("_")
        if path in names:
            state[f"{names[path]}/{slot[0]}"] = variable.value  # "momentum", "velocity"
    return state


def make_train_step(model, config, optimizer=None):
    """step(images, masks) -> scalar loss, weights updated; both as `data.loader` gives them.

    What `fit` does by itself, written out.
    """
    optimizer = optimizer or make_optimizer(model, config)

    @tf.function(jit_compile=config.training.jit)
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

    @tf.function(jit_compile=config.training.jit, reduce_retracing=True)
    def eval_step(images, masks):
        logits = any_size(model, images, config.network)
        return segmentation_loss(masks, logits, config), probabilities(logits)

    return eval_step


def train(config):
    """One run, from the files on disk to the pictures of its results."""
    config, training, validation = load_examples(config)
    model = UNet(config.network)
    optimizer = make_optimizer(model, config)
    model.compile(optimizer, SegmentationLoss(config), jit_compile=config.training.jit)
    weights, state = named_weights(model), named_state(model, optimizer)
    eval_step = make_eval_step(model, config)
    with Run(
        "keras_impl", config, training, validation, weights, state, optimizer, eval_step
    ) as run:
        if not run.done:  # shuffled by the loader, shown by the run
            first, steps = run.step // run.steps_per_epoch, run.steps_per_epoch
            model.fit(
                run.batches, epochs=config.training.epochs, initial_epoch=first,
                steps_per_epoch=steps, shuffle=False, verbose=0, callbacks=[RunCallback(run)],
            )  # fmt: skip
        run.finish()


def main(argv=None):
    train_as_told("keras_impl", train, argv, __doc__)


if __name__ == "__main__":
    run_script(main)
