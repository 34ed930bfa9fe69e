"""Train the U-Net written in tf.layers, with the optimizers of tf.compat.v1.train."""

import sys
from pathlib import Path

if __name__ == "__main__":  # --help and bad options need no TensorFlow
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python highlevel/train.py`
    from training.options import before_tensorflow, run_script

    before_tensorflow("highlevel", __doc__)

from common.device import tf  # tensorflow, started quietly
from common.losses import segmentation_loss
from data.loader import load_examples
from highlevel.model import UNet, named_weights
from training.run import Run
from training.start import train_as_told

Optimizer, mixed_precision = tf.compat.v1.train.Optimizer, tf.compat.v1.mixed_precision


def make_train_step(model, config, optimizer=None):
    """step(images [N, H, W, C], masks [N, H, W, 1] of classes) -> scalar loss, weights updated."""
    optimizer = optimizer or make_optimizer(model, config)

    @tf.function(jit_compile=config.training.jit, autograph=False)  # no `if` on a tensor
    def train_step(images, masks):
        weights = model.trainable_variables
        logits = model(images, training=True)
        loss = segmentation_loss(masks, logits, config)
        # by tf.gradients: no tape, it walks the graph back from the loss, times its scale if any
        gradients, _ = zip(*optimizer.compute_gradients(loss, weights, Optimizer.GATE_NONE))
        with tf.name_scope("optimizer"):  # for profiles
            if config.training.clip_norm:
                gradients, _ = tf.clip_by_global_norm(gradients, config.training.clip_norm)
            optimizer.apply_gradients(zip(gradients, weights), global_step=optimizer.iterations)
        return loss

    return train_step


def train(config):
    """One run, from the files on disk to the pictures of its results."""
    config, train_set, val_set = load_examples(config)  # config: completed by the data
    model = UNet(config.network)
    optimizer = make_optimizer(model, config)
    train_step = make_train_step(model, config, optimizer)
    weights, state = named_weights(model), named_state(model, optimizer)
    with Run("highlevel", config, train_set, val_set, model, weights, state, optimizer) as run:
        for images, masks in run.steps():
            run.end_step(train_step(images, masks))
        run.finish()


def main(argv=None):
    train_as_told("highlevel", train, argv, __doc__)


def make_optimizer(model, config):
    """The optimizer that `config` names; its `learning_rate` can be assigned."""
    settings = config.training
    learning_rate = tf.Variable(settings.learning_rate, dtype=tf.float32, name="learning_rate")
    if settings.optimizer == "adam":
        # with their dtype: on its way into a float64 graph a Python float passes through float32
        number = tf.as_dtype(config.network.variable_dtype).as_numpy_dtype
        constants = map(number, (settings.beta_1, settings.beta_2, settings.epsilon))
        optimizer = Adam(learning_rate, *constants)
    else:
        optimizer = SGD(learning_rate, settings.momentum)
    wrapped = optimizer
    if config.network.precision == "float16":  # leaves out steps whose gradients overflow
        wrapped = mixed_precision.MixedPrecisionLossScaleOptimizer(optimizer, "dynamic")
    optimizer._create_slots(model.trainable_variables)  # now: a checkpoint may fill them
    wrapped.inner, wrapped.learning_rate = optimizer, learning_rate
    wrapped.iterations = tf.Variable(0, dtype=tf.int64, name="iterations")
    return wrapped


def named_state(model, optimizer):
    """A weight's name and "/m" or "/v" -> that moment of its gradient; "iterations": steps made."""
    state = {"iterations": optimizer.iterations}
    weights = {name: w for name, w in named_weights(model).items() if w.trainable}
    for name, weight in weights.items():
        for slot in optimizer.inner.get_slot_names():  # "m", "v" or "momentum"
            state[f"{name}/{slot[0]}"] = optimizer.inner.get_slot(weight, slot)
    if optimizer.inner is not optimizer:
        *_, state["loss_scale"], state["finite_steps"] = optimizer.variables()
    return state


# --- by hand: what lets a checkpoint fit the other columns, and a rate that changes ---
class Adam(tf.compat.v1.train.AdamOptimizer):
    """v1 keeps beta**t in two variables, which other checkpoints lack: here t gives them."""

    def apply_gradients(self, grads_and_vars, global_step, name=None):
        for power, beta in zip(self._get_beta_accumulators(), (self._beta1, self._beta2)):
            power.assign(beta ** tf.cast(global_step + 1, power.dtype))
        return super().apply_gradients(grads_and_vars, global_step, name)


class SGD(tf.compat.v1.train.MomentumOptimizer):
    """v1: a = momentum * a + g;  w -= lr * a. The same for as long as the learning rate stays.

    Here as in the others, Sutskever et al. 2013: m = momentum * m - lr * g;  w += m
    """

    def _resource_apply_dense(self, grad, var):
        lr, m = tf.cast(self._learning_rate_tensor, grad.dtype), self.get_slot(var, "momentum")
        return tf.raw_ops.ResourceApplyKerasMomentum(  # both equations in one kernel
            var=var.handle, accum=m.handle, lr=lr, grad=grad, momentum=self._momentum
        )


if __name__ == "__main__":
    run_script(main)
