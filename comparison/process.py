"""A process of `comparison.start_process`: runs one function with the modules of one checkout of this project.

    python process.py CHECKOUT HANDLE      HANDLE: file descriptor of a connection, which says what to run

The checkout may hold another version, so nothing of the project is imported up here. The functions below run there and use only
what every version since commit 4ec3128 has.
"""

import contextlib
import importlib
import sys
from multiprocessing.connection import Connection


def name_options(connection):
    """Sends the names of the options that the checkout's version has."""
    from common.config import Config

    connection.send(list(Config().as_dict()))


def hold_cell(cell, options, *others):
    """The process that measures one cell. cell: the fields of `Cell`. options: of `Config.as_dict`, those that there are."""
    from common.config import Config

    try:
        from comparison.cells import Cell
        from comparison.worker import work
    except ModuleNotFoundError:  # in 4ec3128 both stand in bench.py
        from comparison.bench import Cell, work
    work(Cell(*cell), Config.from_dict(options), *others)


def main(checkout, handle):
    sys.path[0] = checkout
    connection = Connection(int(handle))
    with contextlib.suppress(EOFError, ConnectionError):  # nobody asks any more
        module, name, arguments = connection.recv()
        work = globals()[name] if module == "comparison.process" else getattr(importlib.import_module(module), name)
        work(*arguments, connection)


if __name__ == "__main__":
    main(*sys.argv[1:])
