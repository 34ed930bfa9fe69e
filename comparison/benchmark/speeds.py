"""What `compare.py bench` says of its measurements: records and the table."""

import statistics

from comparison.benchmark import roofline
from comparison.benchmark.cells import MODES, ROWS, Cell

import numpy as np

WIDTH = max(map(len, ROWS)) + 4


def record(cell, mode, workers, config, limit):
    """What `bench.Workers` know of one cell in one mode, as JSON has it. limit: of the device in that precision, or None."""
    times, first, size = workers.times[cell, mode], workers.first[cell], workers.sizes[cell]
    config, training = cell.config(config), mode == "train"
    flops = cell.batch_size * roofline.convolution_flops(config.network, *size)[training]
    step, published = statistics.median(times), cell.published(mode)
    return {
        **{name: value for name, value in cell._asdict().items() if name != "changes"},
        **dict(mode=mode, image_size=str(cell.image_size)),
        "images_per_second": cell.batch_size / step,
        "images_per_second_quartiles": [cell.batch_size / q for q in np.percentile(times, [75, 25])],
        **({"published_by_nvidia": published} if published else {}),
        "images_per_second_best": cell.batch_size / min(times),
        "step_seconds": times,
        "flops": flops,
        "least_bytes": roofline.least_bytes(config, cell.precision, cell.batch_size, *size)[training],
        "flops_per_second": flops / step,
        "share_of_arithmetic_limit": limit and flops / step / limit["convolution"],
        "first_step_seconds": first["import"] + sum(first[f"{what} {mode}"] for what in ("build", "trace", "compile")),
        "import_seconds": first["import"],
        **{f"{what}_seconds": first[f"{what} {mode}"] for what in ("build", "trace", "compile")},
        "peak_memory_bytes": workers.peaks.get(cell),
    }


def print_table(records, limits, first):
    """first: whether nothing is printed yet, and the columns need their names."""
    for precision, limit in limits.items():
        words = f"{limit['convolution'] / 1e9:,.0f} GFLOP/s in a large convolution, {limit['copy'] / 1e9:,.1f} GB/s in a copy"
        print(f"limit in {precision}: {words}")
    if first:
        print(f"\n{'':<{WIDTH}}{'images/s':>9}{'quartiles':>20}{'best':>9}{'relative':>10}{'step':>11}", end="")
        print(f"{'GFLOP/s':>9}{'of limit':>9}{'trace':>8}{'compile':>9}{'first step':>12}{'peak memory':>17}")
    shown = None
    for row in records:
        cell = Cell(*(row[name] for name in Cell._fields[:6]))
        title = f"{MODES[row['mode']]}, {cell.setting}"
        if title != shown:
            published = (
                f" (NVIDIA's, float16 with XLA on one A100: {row['published_by_nvidia']})"
                if "published_by_nvidia" in row
                else ""
            )
            print(f"\n{title}{published}")
            shown, reference = title, row["images_per_second"]
        low, high = row["images_per_second_quartiles"]
        share, peak = row["share_of_arithmetic_limit"], row["peak_memory_bytes"]
        print(
            f"  {row['implementation']:<{WIDTH - 2}}{row['images_per_second']:>9.1f}{f'{low:.1f} to {high:.1f}':>20}"
            f"{row['images_per_second_best']:>9.1f}{row['images_per_second'] / reference:>10.2f}"
            f"{1000 * statistics.median(row['step_seconds']):>8.1f} ms{row['flops_per_second'] / 1e9:>9.0f}"
            f"{f'{100 * share:.0f} %' if share else '':>9}{row['trace_seconds']:>6.1f} s{row['compile_seconds']:>7.1f} s"
            f"{row['first_step_seconds']:>10.1f} s{f'{peak / 2**20:.0f} MiB' if peak else '':>17}",
            flush=True,
        )
