"""What compare.py calls: is it the same network three times, and what does each cost?"""

import importlib
import multiprocessing
import signal
import types

import common  # noqa: F401  settles the environment before any TensorFlow is imported

IMPLEMENTATIONS = ("lowlevel", "highlevel", "keras_impl")


def load(implementation):
    """The contract's functions of one implementation, as attributes: `UNet`, `named_weights`, `make_train_step`..."""
    functions = {}
    for module in ("model", "train"):
        functions.update(vars(importlib.import_module(f"{implementation}.{module}")))
    contract = ["UNet", "named_weights", "make_optimizer", "named_state"]
    contract += ["make_train_step", "make_eval_step", "main"]
    return types.SimpleNamespace(**{name: functions[name] for name in contract})


def start_process(work, *args):
    """Starts `work(*args, connection)` in a process of its own. -> (process, the other end of the connection)

    Receiving from it raises EOFError when the process has ended.
    """
    context = multiprocessing.get_context("spawn")  # a fork would inherit TensorFlow's threads half alive
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(*args, theirs), daemon=True)
    stop = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: Ctrl-C is for this process to answer
    try:
        process.start()
    finally:
        signal.signal(signal.SIGINT, stop)
    theirs.close()  # so that receiving ends when the process does
    return process, ours


def ask(connection, request):
    """The answer of a process to `request`. Raises: EOFError when the process has ended."""
    try:
        connection.send(request)
        return connection.recv()
    except (BrokenPipeError, ConnectionResetError):
        raise EOFError from None
