"""Train the U-Net written in Keras 3: compile, fit and a callback."""

import sys
from pathlib import Path

if __name__ == "__main__":  # --help and bad options need no TensorFlow
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python keras_impl/train.py`
    from training.options import before_tensorflow, run_script

    before_tensorflow("keras_impl", __doc__)

from common.losses import segmentation_loss
from data.loader import load_examples
from keras_impl.model import UNet, named_weights
from training.run import Run
from training.start import train_as_told

import keras


def train(config):
    """One run, from the files on disk to the pictures of its results."""
    config, train_set, val_set = load_examples(config)  # config: completed by the data
    model = UNet(config.network)
    optimizer = make_optimizer(model, config)
    model.compile(optimizer, SegmentationLoss(config), jit_compile=config.training.jit)
    weights, state = named_weights(model), named_state(model, optimizer)
    with Run("keras_impl", config, train_set, val_set, model, weights, state, optimizer) as run:
        if not run.done:  # a run that has stopped early: `fit` would make one more step
            model.fit(
                run.batches, shuffle=False, verbose=0,  # the loader shuffles, the run prints
                epochs=config.training.epochs, steps_per_epoch=run.steps_per_epoch,
                initial_epoch=run.step // run.steps_per_epoch, callbacks=[RunCallback(run)],
            )  # fmt: skip
        run.finish()


def main(argv=None):
    train_as_told("keras_impl", train, argv, __doc__)


def make_optimizer(model, config):
    """The optimizer that `config` names; its `learning_rate` can be assigned."""
    settings, lr, clip = config.training, config.training.learning_rate, config.training.clip_norm
    if settings.optimizer == "adam":
        beta_1, beta_2, epsilon = settings.beta_1, settings.beta_2, settings.epsilon
        optimizer = keras.optimizers.Adam(lr, beta_1, beta_2, epsilon, global_clipnorm=clip)
    else:
        optimizer = keras.optimizers.SGD(lr, settings.momentum, global_clipnorm=clip)
    if config.network.precision == "float16":  # leaves out steps whose gradients overflow
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    optimizer.build(model.trainable_variables)  # now: a checkpoint may fill its moments
    return optimizer


def named_state(model, optimizer):
    """A weight's name and "/m" or "/v" -> that moment of its gradient; "iterations": steps made."""
    weights = [name for name, weight in named_weights(model).items() if weight.trainable]
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    _, _, *moments = inner.variables  # after iterations and rate: m (and v), weight by weight
    names = [f"{name}/{slot}" for name in weights for slot in "mv"[: len(moments) // len(weights)]]
    state = {name: moment.value for name, moment in zip(names, moments, strict=True)}
    if inner is not optimizer:
        scale, steps = optimizer.dynamic_scale.value, optimizer.step_counter.value
        state |= {"loss_scale": scale, "finite_steps": steps}
    return {"iterations": optimizer.iterations.value, **state}


# --- by hand: `fit` owns the loop, so the loss and the run are plugged in ---
class SegmentationLoss(keras.losses.Loss):
    """For `compile`. It casts masks and logits to its own dtype, by default float32."""

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


if __name__ == "__main__":
    run_script(main)
