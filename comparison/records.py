"""Prints the tables of speed in docs/results.md, from the files that `compare.py bench` wrote on each machine.

    python -m comparison.records docs/bench/*.json

`compare.py bench --against docs/bench/NAME.json` holds another machine against one of them.
"""

import statistics
from pathlib import Path

import comparison
from common.cli import Parser, run_script
from comparison.cells import MODES
from comparison.report import read_record


def table(path):
    """One machine's table in Markdown. Raises: UserError for what `bench` did not write."""
    found, shown = read_record(path), {}
    about = found["environment"]
    device = about["device"] if about["gpu"] else f"{about['device']} of {about['cpu']}"
    for row in found["records"]:
        words = f"{MODES[row['mode']]}, {row['precision']}{', XLA' if row['jit'] else ''}, "
        shown.setdefault(words + f"{row['batch_size']} x {row['image_size']}", {})[row["implementation"]] = row
    lines = [f"{device}, TensorFlow {about['packages']['tensorflow']}, {about['date']}, `docs/bench/{path.name}`:", ""]
    lines += [f"| images per second | {' | '.join(f'`{name}`' for name in comparison.IMPLEMENTATIONS)} | of the limit |"]
    lines += ["|---|---|---|---|---|"]
    for words, rows in shown.items():
        speeds = [f"{rows[name]['images_per_second']:,.4g}" if name in rows else "" for name in comparison.IMPLEMENTATIONS]
        shares = [100 * row["share_of_arithmetic_limit"] for row in rows.values() if row["share_of_arithmetic_limit"]]
        lines.append(f"| {words} | {' | '.join(speeds)} | {f'{statistics.median(shares):.0f} %' if shares else ''} |")
    for precision, limit in found["limits"].items():
        words = f"{limit['convolution'] / 1e9:,.0f} GFLOP/s in a large convolution, {limit['copy'] / 1e9:,.0f} GB/s in a copy"
        lines.append(f"| the limit, {precision} | | | | {words} |")
    return "\n".join(lines)


def main(argv=None):
    """Returns: the exit code."""
    parser = Parser(prog="python -m comparison.records", description=__doc__)
    parser.add_argument("records", type=Path, nargs="+", metavar="FILE", help="a bench.json")
    print("\n\n".join(table(path) for path in parser.parse_args(argv).records))
    return 0


if __name__ == "__main__":
    run_script(main)
