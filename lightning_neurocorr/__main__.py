"""``python -m lightning_neurocorr``: look at reports and log folders without writing a program."""

from lightning_neurocorr.inspector.command import main

if __name__ == "__main__":
    raise SystemExit(main())
