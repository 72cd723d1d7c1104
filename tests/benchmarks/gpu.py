"""On a GPU: every line of the table of goals, each beside its floor in the same run.

    python -m tests.benchmarks.gpu [--device cpu] [--fast] [--only NAME ...]

ResNet-50 and ViT-B/16 of torchvision with random weights at 224 x 224, bfloat16 autocast and
channels_last, batches on the device. Wall-clock time between synchronisations, medians of runs that
take turns. It is made for less than four minutes on an H100: each part has a cap, and none begins
after 230 s. A part that fails or finds no time left says so in its row, and the others go on.
``--device cpu --fast`` runs everything small, to see that it works where there is no GPU: its
figures mean nothing, and no goal is judged.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable

import torch

from tests.benchmarks import gpu_epoch, gpu_pictures, gpu_update
from tests.benchmarks.gpu_table import Bench, Row, Sizes
from tests.benchmarks.timing import machine, table

PARTS: dict[str, Callable[[Bench], list[Row]]] = {
    "update": gpu_update.all_sizes,
    "layers": gpu_update.layers,
    "epoch": gpu_epoch.resnet,
    "vit": gpu_epoch.vit,
    "attribution": gpu_epoch.attribution,
    "pictures": gpu_pictures.pictures,
    "studies": gpu_pictures.studies,
    "waits": gpu_epoch.waits,
}
HEADER = ("what", "measured", "in the same run", "goal", "")


def measured(bench: Bench, name: str) -> tuple[list[Row], bool]:
    """The rows of a part, and whether it worked."""
    if bench.passed > bench.total_s:
        return [Row(name, f"not run: {bench.total_s:.0f} s were over")], False
    try:
        return PARTS[name](bench), True
    except Exception as error:  # noqa: BLE001 -- the other rows are worth having
        return [Row(name, f"failed: {type(error).__name__}: {str(error).splitlines()[0]}")], False


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--fast", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args(arguments)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit(
            "Expected a GPU that PyTorch can use, but there is none here. Run this where there is "
            "one, or try the script with --device cpu --fast."
        )
    warnings.simplefilter("ignore")
    # its processes would start while the first rows are timed
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    device = torch.device(options.device)
    bench = Bench(device, Sizes.fast() if options.fast else Sizes())
    judged = device.type == "cuda" and not options.fast
    rows, works = [], True
    for name in options.only:
        found, worked = measured(bench, name)
        rows += found
        works &= worked
        print(f"{bench.passed:4.0f} s of {bench.total_s:.0f}: {name}", file=sys.stderr, flush=True)
    print(table(HEADER, [row.cells(judged) for row in rows]), flush=True)
    there = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU"
    print(machine("torchvision", threads=f"{there}, {bench.passed:.0f} s in all"))
    if not works:
        sys.exit(1)


if __name__ == "__main__":
    main()
