"""Table files and questions for tests of table baselines."""

import torch


def written(tmp_path, text, name="table.csv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def at(baseline, *positions):
    return baseline.predict_at(None, torch.tensor(positions))
