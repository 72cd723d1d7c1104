"""The five studies on real photographs, through ``compare``: what is planted is found, no more.

    python -m tests.benchmarks.studies_fashion [--only words advantage ...] [--seeds 10 11 12]

The world is `tests.benchmarks.fashion_world`: two small CNNs on Fashion-MNIST, each of which knows
conditions that the other does not. *Planted neurons* stand beside those of the trained network, as
a layer of their own: they fire for a word in eight of ten samples, and in two of a hundred others.
Prints a table with goal and measured; networks are kept in the folder for temporary files.
"""

from __future__ import annotations

import argparse
import time
import warnings

import torch

from tests.benchmarks.fashion_networks import groups, matches, readout
from tests.benchmarks.fashion_slices import slices
from tests.benchmarks.fashion_words import advantage, formulas, words
from tests.benchmarks.timing import machine, table

PARTS = {
    "words": words, "advantage": advantage, "formulas": formulas, "slices": slices,
    "matches": matches, "groups": groups, "readout": readout,
}  # fmt: skip


def main() -> None:
    """Print the parts that are asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[10, 11, 12])
    parser.add_argument("--nulls", type=int, default=200, help="null runs of slices")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in args.only:
        began = time.process_time()
        more = {"nulls": args.nulls} if name == "slices" else {}
        rows = list(PARTS[name](args.seeds, **more))
        print(f"{name} ({time.process_time() - began:.0f} s of CPU)\n", flush=True)
        print(table(["", "goal", "measured"], rows), flush=True)
    print(f"Seeds {', '.join(map(str, args.seeds))}. {machine('scikit-learn')}")


if __name__ == "__main__":
    main()
