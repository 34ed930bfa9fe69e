"""A process of `comparison.start_process`: runs one function with the modules of one checkout of this project.

    python process.py CHECKOUT HANDLE      HANDLE: file descriptor of a connection, which says what to run

The checkout may hold another version, so nothing of the project is imported up here, and `hold_cell` uses only what every
version since commit 4ec3128 has.
"""

import contextlib
import importlib
import sys
from multiprocessing.connection import Connection


def hold_cell(cell, options, images, masks, started, connection):
    """The process that measures one cell. cell: the fields of `Cell`. options: `Config.as_dict` of the version that asks.

    Says first which of the options this version does not have; they are left out.
    """
    from common.config import Config

    try:
        from comparison.cells import Cell
        from comparison.worker import work
    except ModuleNotFoundError:  # in 4ec3128 both stand in bench.py
        from comparison.bench import Cell, work
    known = Config().as_dict()
    connection.send([name for name in options if name not in known])
    config = Config.from_dict({name: value for name, value in options.items() if name in known})
    work(Cell(*cell), config, images, masks, started, connection)


def main(checkout, handle):
    sys.path[0] = checkout
    connection = Connection(int(handle))
    with contextlib.suppress(EOFError, ConnectionError):  # nobody asks any more
        module, name, arguments = connection.recv()
        if module == "comparison.process":
            return hold_cell(*arguments, connection)
        from common.config import UserError

        try:
            getattr(importlib.import_module(module), name)(*arguments, connection)
        except UserError as error:  # `comparison.receive` raises it there
            connection.send(error)


if __name__ == "__main__":
    main(*sys.argv[1:])
