"""Train the U-Net written in Keras 3: compile, fit and callbacks."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `python keras_impl/train.py` works too

from common.config import run_script
from common.loop import Run, start, train_folds
from common.losses import probabilities, segmentation_loss
from data.loader import load_examples
from keras_impl.model import UNet, named_weights

import keras
import numpy as np
import tensorflow as tf

# --- what raw operations and tf.layers do not need ---


class SegmentationLoss(keras.losses.Loss):
    """`segmentation_loss` as `compile` takes it. Without `dtype=` Keras would cast float64 logits to float32 on the way."""

    def __init__(self, config):
        super().__init__(dtype=config.variable_dtype)
        self.config = config

    def call(self, masks, logits):
        return segmentation_loss(masks, logits, self.config)


class RunCallback(keras.callbacks.CallbackList):
    """Tells the run about every step of `fit`. The run knows by itself where an epoch ends, and when all is done.

    Not a `Callback` in Keras's own list: that makes a number of the loss at every step, for which a GPU has to stop.
    """

    def __init__(self, run, model):
        super().__init__(add_history=True, model=model)  # the history, because `fit` returns it
        self.run = run

    def on_train_batch_end(self, batch, logs=None):
        self.run.end_step(logs["loss"])
        self.model.reset_metrics()  # Keras logs the mean since the last reset; the run wants the loss of each step
        self.model.stop_training = self.run.done


# --- training ---


def make_optimizer(model, config):
    """The optimizer that `config` names, over the model's trainable weights; `learning_rate` is a variable."""
    # numpy, because Keras casts its constants through float32 where they are Python floats
    number = np.float64 if config.precision == "float64" else float
    if config.optimizer == "adam":
        optimizer = keras.optimizers.Adam(
            config.learning_rate,
            number(config.beta_1),
            number(config.beta_2),
            epsilon=config.epsilon,
            global_clipnorm=config.clip_norm,
        )
    else:
        momentum = number(config.momentum)
        optimizer = keras.optimizers.SGD(config.learning_rate, momentum=momentum, global_clipnorm=config.clip_norm)
    optimizer.build(model.trainable_variables)
    return optimizer


def named_state(model, optimizer):
    """Canonical name of the weight and "/m" or "/v" -> variable of the optimizer; "iterations": the steps it has made."""
    paths = {weight.path.replace("/", "_"): weight.path.replace("_", "/", 1) for weight in model.trainable_weights}
    state = {"iterations": optimizer.iterations.value}
    for variable in optimizer.variables:
        path, _, slot = variable.name.rpartition("_")
        if path in paths:
            state[f"{paths[path]}/{slot[0]}"] = variable.value  # "momentum" and "velocity"
    return state


def make_train_step(model, config, optimizer=None):
    """step(images, masks) -> scalar loss, weights updated. Images and masks as `data.loader` gives them."""
    optimizer = optimizer or make_optimizer(model, config)

    @tf.function(jit_compile=config.jit)
    def train_step(images, masks):
        with tf.GradientTape() as tape:
            logits = model(images, training=True)
            loss = segmentation_loss(masks, logits, config)
        weights = model.trainable_weights
        gradients = tape.gradient(loss, [w.value for w in weights])
        with tf.name_scope("optimizer"):
            optimizer.apply(gradients, weights)  # clips them too, as `make_optimizer` told it to
        return loss

    return train_step


def make_eval_step(model, config):
    """step(images, masks) -> (scalar loss, probabilities [N, H, W, classes]), nothing updated."""

    @tf.function(jit_compile=config.jit, reduce_retracing=True)
    def eval_step(images, masks):
        logits = model(images, training=False)
        return segmentation_loss(masks, logits, config), probabilities(logits)

    return eval_step


def train(config):
    config, training, validation = load_examples(config)
    model = UNet(config)
    optimizer = make_optimizer(model, config)
    model.compile(optimizer, SegmentationLoss(config), jit_compile=config.jit)
    weights, state = named_weights(model), named_state(model, optimizer)
    with Run("keras_impl", config, training, validation, weights, state, optimizer, make_eval_step(model, config)) as run:
        if not run.done:
            model.fit(
                run.batches,
                steps_per_epoch=run.steps_per_epoch,
                initial_epoch=run.step // run.steps_per_epoch,
                epochs=config.epochs,
                shuffle=False,  # `data.loader` shuffles, the same for all three
                verbose=0,  # the run draws the progress bar
                callbacks=RunCallback(run, model),
            )
        run.finish()


def main(argv=None):
    train_folds("keras_impl", train, start("keras_impl", argv, __doc__))


if __name__ == "__main__":
    run_script(main)
