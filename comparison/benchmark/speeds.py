"""What `compare.py bench` says of its measurements: records, the table and the bar chart."""

import statistics

from common.pictures import save_figure
from comparison.benchmark import roofline
from comparison.benchmark.cells import MODES, ROWS, Cell

import numpy as np
from matplotlib.figure import Figure

SETTING = Cell._fields[:-1]
WIDTH = max(map(len, ROWS)) + 4


def record(cell, mode, workers, config, limit):
    """What `bench.Workers` know of one cell in one mode, as JSON has it. limit: of the device in that precision, or None."""
    times, first, size = workers.times[cell, mode], workers.first[cell], workers.sizes[cell]
    config, training = cell.config(config), mode == "train"
    flops = cell.batch_size * roofline.convolution_flops(config.network, *size)[training]
    step = statistics.median(times)
    return {
        **cell._asdict(),
        **dict(mode=mode, image_size=str(cell.image_size)),
        "images_per_second": cell.batch_size / step,
        "images_per_second_quartiles": [cell.batch_size / q for q in np.percentile(times, [75, 25])],
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


def print_table(records, limits, failed):
    for precision, limit in limits.items():
        words = f"{limit['convolution'] / 1e9:,.0f} GFLOP/s in a large convolution, {limit['copy'] / 1e9:,.1f} GB/s in a copy"
        print(f"limit in {precision}: {words}")
    print(f"\n{'':<{WIDTH}}{'images/s':>9}{'quartiles':>17}{'best':>8}{'relative':>10}{'step':>11}", end="")
    print(f"{'GFLOP/s':>9}{'of limit':>9}{'trace':>8}{'compile':>9}{'first step':>12}{'peak of process':>17}")
    shown = None
    for row in records:
        title = f"{MODES[row['mode']]}, {Cell(*(row[name] for name in Cell._fields)).setting}"
        if title != shown:
            print(f"\n{title}")
            shown, reference = title, row["images_per_second"]
        low, high = row["images_per_second_quartiles"]
        share, peak = row["share_of_arithmetic_limit"], row["peak_memory_bytes"]
        print(
            f"  {row['implementation']:<{WIDTH - 2}}{row['images_per_second']:>9.1f}{f'{low:.1f} to {high:.1f}':>17}"
            f"{row['images_per_second_best']:>8.1f}{row['images_per_second'] / reference:>10.2f}"
            f"{1000 * statistics.median(row['step_seconds']):>8.1f} ms{row['flops_per_second'] / 1e9:>9.0f}"
            f"{f'{100 * share:.0f} %' if share else '':>9}{row['trace_seconds']:>6.1f} s{row['compile_seconds']:>7.1f} s"
            f"{row['first_step_seconds']:>10.1f} s{f'{peak / 2**20:.0f} MiB' if peak else '':>17}"
        )
    for why in failed.values():
        print(f"\n{why}")


def draw(records, title, path):
    """A bar for every implementation, setting and mode: the median, with the quartiles as whiskers."""
    modes = [mode for mode in MODES if any(row["mode"] == mode for row in records)]
    settings = list(dict.fromkeys(tuple(row[name] for name in SETTING) for row in records))
    figure = Figure(figsize=(4.2 * len(modes), 2 + 0.75 * len(settings)))
    panels = dict(zip(modes, figure.subplots(1, len(modes), squeeze=False).flat))
    for row in records:
        k = ROWS.index(row["implementation"])
        y = settings.index(tuple(row[name] for name in SETTING)) + 0.21 * (k - 1.5)
        median, quartiles = row["images_per_second"], np.array([row["images_per_second_quartiles"]]).T
        axes = panels[row["mode"]]
        bar = axes.barh(y, median, 0.2, xerr=np.abs(quartiles - median), color=f"C{k}", capsize=2)
        axes.bar_label(bar, fmt="%.0f", fontsize=7, padding=3)
    words = [f"{p}{', XLA' if jit else ''}\nbatch {batch}, {size}" for p, jit, batch, size in settings]
    for mode, axes in panels.items():
        axes.set_yticks(range(len(settings)), words if mode == modes[0] else [""] * len(settings), fontsize=7)
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.set(title=MODES[mode], xlabel="images per second")
    handles = [figure.axes[0].barh(0, 0, color=f"C{k}") for k in range(len(ROWS))]
    figure.legend(handles, ROWS, loc="lower right", ncols=len(ROWS), fontsize=7)
    figure.suptitle(title, fontsize=8)
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    save_figure(figure, path)
