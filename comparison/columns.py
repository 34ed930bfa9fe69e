"""The three columns, or one of the reader's own: loaded, built, and run in processes of their own that take turns."""

import contextlib
import dataclasses
import functools
import importlib
import multiprocessing
import pkgutil
import signal
import types
from multiprocessing import resource_tracker
from pathlib import Path

from common.checkpoint import load_checkpoint, save_checkpoint
from common.config import IMPLEMENTATIONS, UserError  # noqa: F401
from common.weights import assign_weights, fold_batch_norm, initial_weights, is_trainable, weight_shapes
from comparison import own

import numpy as np
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
SPAWN = multiprocessing.get_context("spawn")  # TensorFlow survives no fork


def load(implementation):
    """The functions of one implementation, as attributes: `UNet`, `named_weights`, `make_train_step`, `main`...

    implementation: one of the three, or the folder of a column of the reader's own, which may lack those of the training.
    """
    from common.device import tf
    from common.losses import segmentation_loss
    from training.devices import variants

    tf.get_logger().setLevel("ERROR")  # "triggered retracing": models of one column are traced by the same lines
    if implementation in IMPLEMENTATIONS:
        names = {}
        for module in ("model", "train"):
            names |= vars(importlib.import_module(f"{implementation}.{module}"))
    else:
        names = own.load(implementation)
    code = types.SimpleNamespace(**names)
    if hasattr(code, "SegmentationLoss") and not hasattr(code, "make_train_step"):  # it trains by `fit`
        code.make_train_step = functools.partial(make_keras_step, code)
    if not hasattr(code, "segmentation_loss"):
        loss = getattr(code, "SegmentationLoss", None)
        code.segmentation_loss = (lambda masks, logits, of: loss(of)(masks, logits)) if loss else segmentation_loss
    if implementation in IMPLEMENTATIONS and tf.distribute.get_strategy().num_replicas_in_sync > 1:
        vars(code).update(variants(implementation))
    return code


def make_keras_step(code, model, config, optimizer=None):
    """`make_train_step` for keras_impl, or another column with a loss for `compile`: the step that `fit` makes, to be called.

    code: of `load`. A test holds it against `fit`, bit for bit.
    """
    from common.device import tf
    from training.devices import on_every_replica

    optimizer, loss_of = optimizer or code.make_optimizer(model, config), code.SegmentationLoss(config)

    @tf.function(jit_compile=config.training.jit, autograph=False)
    @on_every_replica
    def train_step(images, masks):
        weights = model.trainable_variables
        with tf.GradientTape() as tape:
            logits = model(images, training=True)
            loss = loss_of(masks, logits)
            scaled = optimizer.scale_loss(loss)  # as it is, but for float16
        gradients = tape.gradient(scaled, weights)
        with tf.name_scope("optimizer"):
            optimizer.apply(gradients, weights)
        return loss

    return train_step


class Built:
    """One implementation, built from `config`, with the canonical initial weights. What nobody asks for is not made.

    weights: canonical name -> variable. code: the functions to build it of, if not those that `load` gives.
    """

    def __init__(self, implementation, config, code=None):
        self.implementation, self.config, self.code = implementation, config, code or load(implementation)
        with own.blamed(implementation):
            self.model = self.code.UNet(config.network)
            self.weights = self.code.named_weights(self.model)
        if implementation not in IMPLEMENTATIONS:
            found = {name: w.shape for name, w in self.weights.items()}
            own.check_shapes(f"{implementation}: named_weights", found, weight_shapes(config.network))

    @property
    def trains(self):
        """Whether there is more than the model."""
        return hasattr(self.code, "make_optimizer")

    @functools.cached_property
    def optimizer(self):
        return self.code.make_optimizer(self.model, self.config)

    @functools.cached_property
    def state(self):
        """Of the optimizer: canonical name and "/m" or "/v", and "iterations" -> variable."""
        state = self.code.named_state(self.model, self.optimizer)
        if self.implementation not in IMPLEMENTATIONS:
            slots = "mv" if self.config.training.optimizer == "adam" else "m"
            trained = {name: w.shape for name, w in self.weights.items() if is_trainable(name)}
            wanted = {"iterations": ()} | {f"{name}/{slot}": shape for name, shape in trained.items() for slot in slots}
            wanted |= {"loss_scale": (), "finite_steps": ()} if self.config.network.precision == "float16" else {}
            own.check_shapes(f"{self.implementation}: named_state", {name: v.shape for name, v in state.items()}, wanted)
        return state

    @functools.cached_property
    def train_step(self):
        """step(images, masks) -> scalar loss, weights updated."""
        return self.code.make_train_step(self.model, self.config, self.optimizer)

    @functools.cached_property
    def forward(self):
        """forward(images) -> logits in inference, as traced."""
        from common.device import tf

        return tf.function(
            lambda images: self.model(images, training=False), jit_compile=self.config.training.jit, autograph=False
        )

    def backward(self, images, masks):
        """(logits, loss, canonical name -> gradient) in training."""
        from common.device import tf

        trainable = {name: weight for name, weight in self.weights.items() if is_trainable(name)}
        with tf.GradientTape() as tape:
            logits = self.model(images, training=True)
            loss = self.code.segmentation_loss(masks, logits, self.config)
        gradients = tape.gradient(loss, trainable)
        if unused := [name for name, gradient in gradients.items() if gradient is None]:
            raise ValueError(f"the loss does not depend on {', '.join(unused[:3])}")
        return logits, loss, gradients

    def start(self, weights=None):
        """From `weights`, canonical name -> array, or from the first ones."""
        assign_weights(self.weights, initial_weights(self.config.network) if weights is None else weights)

    def values(self, trained=None):
        """Canonical name -> array. trained: of what is trained alone, or of what is not."""
        return {name: w.numpy() for name, w in self.weights.items() if trained in (None, is_trainable(name))}

    def moments(self):
        """Of the optimizer, as `state`: canonical name -> array."""
        return {name: value.numpy() for name, value in self.state.items()}

    def carry_on(self, batches, baton=None, **about):
        """A step for each of `batches`, from the checkpoint `baton` on if it is there, which is then replaced. -> losses

        about: what the new checkpoint says of itself.
        """
        if baton and baton.exists():
            values, moments, _ = load_checkpoint(baton, self.config.network)
            self.start(values)
            assign_weights(self.state, moments)
        losses = [np.asarray(self.train_step(*batch)) for batch in batches]
        if baton:
            save_checkpoint(baton, self.weights, self.state, **about)
        return losses

    def folded(self):
        """The same for inference: each batch normalization a part of the convolution before it."""
        network, values = fold_batch_norm(self.config.network, self.values())
        folded = Built(self.implementation, dataclasses.replace(self.config, network=network), self.code)
        folded.start(values)
        return folded


def shrunk(config, small, given):
    """`config` with the options `small`, but for those `given`, and without a size for images that are not to be resized."""
    own = config.data.dataset != "synthetic" or config.data.crop_size
    return config.replace(**{k: v for k, v in small.items() if k not in given and not (own and k == "image_size")})


# --- processes ---


class Process:
    """Runs `work(*args, connection)` in a process of its own, which ends when this one does or when nobody asks any more.

    of: what it works on, for messages. work: a function, or "module.function" where an import would bring too much with it.
    Ctrl-C is for this process to answer and does not reach the other.
    """

    def __init__(self, of, work, *args):
        resource_tracker.ensure_running()  # whose start would let Ctrl-C in again, for the first process
        self.of, (self.connection, theirs) = of, SPAWN.Pipe()
        self.process = SPAWN.Process(target=_answer, args=(work, args, theirs), daemon=True)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # inherited; a Ctrl-C meanwhile waits
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        theirs.close()  # so that receiving ends when the process does

    def ask(self, *request):
        """The answer to `request`, or what it says by itself. Raises: UserError when it has ended, or that is its answer."""
        try:
            for words in request:
                self.connection.send(words)
            answer = self.connection.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self.process.join()
            killed = self.process.exitcode == -signal.SIGKILL
            how = "was killed: too little memory?" if killed else "ended; its last words are above"
            raise UserError(f"the process of {self.of} {how}") from None
        if isinstance(answer, UserError):
            raise answer
        return answer

    def end(self):
        """Nobody asks any more."""
        self.connection.close()
        self.process.join()


def _answer(work, args, connection):
    """What a `Process` runs."""
    try:
        with contextlib.suppress(EOFError, ConnectionError):  # nobody asks any more
            (pkgutil.resolve_name(work) if isinstance(work, str) else work)(*args, connection)
    except UserError as error:  # `ask` raises it there
        connection.send(error)


def returned(*work_and_args):
    """For a `Process` that sends what `work(*args)` returns."""
    work, *args, connection = work_and_args
    connection.send(work(*args))


def call(work, of, *args):
    """What `work(*args)` returns, in a process of its own that works on `of`. Raises: as `Process.ask`."""
    process = Process(of, returned, work, *args)
    answer = process.ask()
    process.end()
    return answer


def in_turns(turns, rounds, title, take):
    """{turn: [what `take(turn)` returned in each round]}; what slows the machine down slows down all of them."""
    found = {turn: [] for turn in turns}
    for k in tqdm(range(rounds), desc=title, unit="round", leave=False, disable=None):
        first = k * len(turns) // rounds
        for turn in turns[first:] + turns[:first]:
            found[turn].append(take(turn))
    return found
