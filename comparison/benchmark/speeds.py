"""What `compare.py bench` says of its measurements: records and the table."""

import statistics

from comparison.benchmark import roofline
from comparison.benchmark.cells import STOCK
from comparison.benchmark.roofline import MODES

import numpy as np

WIDTH = len(STOCK) + 4


def record(cell, mode, measured, limit):
    """One cell in one mode, as JSON has it. measured: a `bench.Measured`. limit: of the device in that precision, or None."""
    first, times, training = measured.first[mode], measured.times[mode], mode == "train"
    flops = cell.batch_size * roofline.convolution_flops(cell.config.network, *measured.size)[training]
    step, published = statistics.median(times), cell.published(mode)
    return {
        **dict(precision=cell.precision, jit=cell.config.training.jit, batch_size=cell.batch_size),
        **dict(image_size=str(cell.image_size), implementation=cell.implementation, variant=cell.variant, mode=mode),
        "images_per_second": cell.batch_size / step,
        "images_per_second_quartiles": [cell.batch_size / q for q in np.percentile(times, [75, 25])],
        **({"published_by_nvidia": published} if published else {}),
        "images_per_second_best": cell.batch_size / min(times),
        "step_seconds": times,
        "flops": flops,
        "least_bytes": roofline.least_bytes(cell.config, cell.precision, cell.batch_size, *measured.size)[training],
        "flops_per_second": flops / step,
        "share_of_arithmetic_limit": limit and flops / step / limit["convolution"],
        "first_step_seconds": measured.imported + sum(first[what] for what in ("build", "trace", "compile")),
        "import_seconds": measured.imported,
        **{f"{what}_seconds": first[what] for what in ("build", "trace", "compile")},
        "peak_memory_bytes": measured.peak,
    }


def print_table(group, records, limit, first):
    """A block for each mode of one setting. first: whether nothing is printed yet, and the columns need their names."""
    setting, mode = group[0].setting, None
    if limit:
        words = f"{limit['convolution'] / 1e9:,.0f} GFLOP/s in a large convolution, {limit['copy'] / 1e9:,.1f} GB/s in a copy"
        print(f"limit in {group[0].precision}: {words}")
    if first:
        print(f"\n{'':<{WIDTH}}{'images/s':>9}{'quartiles':>20}{'best':>9}{'relative':>10}{'step':>11}", end="")
        print(f"{'GFLOP/s':>9}{'of limit':>9}{'trace':>8}{'compile':>9}{'first step':>12}{'peak memory':>17}")
    for row in records:
        if row["mode"] != mode:
            mode, reference, published = row["mode"], row["images_per_second"], row.get("published_by_nvidia")
            of_others = f" (NVIDIA's, float16 with XLA on one A100: {published})" if published else ""
            print(f"\n{MODES[mode]}, {setting}{of_others}")
        low, high = row["images_per_second_quartiles"]
        share, peak = row["share_of_arithmetic_limit"], row["peak_memory_bytes"]
        print(
            f"  {row['implementation']:<{WIDTH - 2}}{row['images_per_second']:>9.1f}{f'{low:.1f} to {high:.1f}':>20}"
            f"{row['images_per_second_best']:>9.1f}{row['images_per_second'] / reference:>10.2f}"
            f"{1000 * statistics.median(row['step_seconds']):>8.1f} ms{row['flops_per_second'] / 1e9:>9.0f}"
            f"{f'{100 * share:.0f} %' if share else '':>9}{row['trace_seconds']:>6.1f} s{row['compile_seconds']:>7.1f} s"
            f"{row['first_step_seconds']:>10.1f} s{f'{peak / 2**20:.0f} MiB' if peak and mode == 'train' else '':>17}",
            flush=True,
        )
