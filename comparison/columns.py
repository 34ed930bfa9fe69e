"""The three columns: loaded, and run in processes of their own."""

import contextlib
import functools
import importlib
import multiprocessing
import pkgutil
import signal
import types
from multiprocessing import resource_tracker
from pathlib import Path

from common.config import IMPLEMENTATIONS, UserError  # noqa: F401

ROOT = Path(__file__).parents[1]
SPAWN = multiprocessing.get_context("spawn")  # TensorFlow survives no fork


def load(implementation):
    """The contract's functions of one implementation, as attributes: `UNet`, `named_weights`, `make_train_step`..."""
    functions = {}
    for module in ("model", "train"):
        functions.update(vars(importlib.import_module(f"{implementation}.{module}")))
    code = types.SimpleNamespace(**functions)
    if implementation == "keras_impl":
        from comparison.keras_step import make_train_step

        code.make_train_step = functools.partial(make_train_step, code)
    return code


def shrunk(config, small, given):
    """`config` with the options `small`, but for those `given`, and without a size for images that are not to be resized."""
    own = config.data.dataset != "synthetic" or config.data.crop_size
    return config.replace(**{k: v for k, v in small.items() if k not in given and not (own and k == "image_size")})


def start_process(work, *args):
    """Starts `work(*args, connection)` in a process of its own. -> (the process, the other end of the connection)

    work: a function, or "module.function" where importing it here would take too much with it.

    Receiving raises EOFError when the process has ended. It ends when this one does or when nobody asks any more. Ctrl-C is for
    this process to answer and does not reach the other.
    """
    resource_tracker.ensure_running()  # whose start would let Ctrl-C in again, for the first process
    ours, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=_answer, args=(work, args, theirs), daemon=True)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # inherited; pressed meanwhile it waits and is not lost
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    theirs.close()  # so that receiving ends when the process does
    return process, ours


def _answer(work, args, connection):
    """The process of `start_process`."""
    try:
        with contextlib.suppress(EOFError, ConnectionError):  # nobody asks any more
            (pkgutil.resolve_name(work) if isinstance(work, str) else work)(*args, connection)
    except UserError as error:  # `receive` raises it there
        connection.send(error)


def ask(connection, *request):
    """The answer of a process to `request`, or what it says by itself. Raises: EOFError when the process has ended."""
    try:
        for words in request:
            connection.send(words)
        return connection.recv()
    except (BrokenPipeError, ConnectionResetError):
        raise EOFError from None


def call(work, of, *args):
    """What `work(*args, connection)` sends, in a process of its own that works on `of`. Raises: as `receive`."""
    process, connection = start_process(work, *args)
    answer = receive(connection, of)
    process.join()
    return answer


def receive(connection, of, *request):
    """`ask` of a process that works on `of`. Raises: UserError when it has ended, or when that is its answer."""
    try:
        answer = ask(connection, *request)
    except EOFError:
        raise UserError(f"the process of {of} ended; its last words are above") from None
    if isinstance(answer, UserError):
        raise answer
    return answer
