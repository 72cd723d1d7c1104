"""One process or several, the same answer; no process waits for another that is not coming.

Two and three gloo processes run every validation of ``ddp_cases``; this process runs the same ones
alone. Where processes disagree (a layer that fires in one only, a baseline that fails in one only)
a collective that is not entered by all would fail the whole start after its timeout.

Sharded models (FSDP by ``fully_shard``) run on the CPU through Lightning's ModelParallelStrategy;
its FSDPStrategy, and PyTorch's older FullyShardedDataParallel under it, want a GPU.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests import ddp_cases
from tests.ddp_run import WORLDS, Results, in_processes

# Positions of shuffled samples are unknown, so halves and exemplars are others in every run.
UNORDERED = ("shuffled", "random_subset")
BY_POSITION = "attribution_contrast"  # partners are matched by a hash of it
# Training sees other batches, rows are duplicated or processes are made to disagree.
OF_THEIR_OWN = (
    "fitted", "late_snapshot", "breaks_in_one_process", "unsharded_stream", "labels_out_of_range",
    "no_distributed_sampler", "sharded_by_hand", "sharded_stream", "one_of_two_loaders_shared_out",
    "regression_without_a_sampler",
    "layer_missing_in_one_batch", "layer_missing_in_other_ranks", "widths_that_differ",
    "unattributed_in_one_process", "placebo_fails_in_one_process", "sharded_evidence",
    "sharded_and_fitted", "held_and_averaged",
)  # fmt: skip
THEIRS = {n for n, run in ddp_cases.CASES.items() if run.__module__ != ddp_cases.__name__}
SAME = [name for name in ddp_cases.CASES if name not in {*OF_THEIR_OWN, *THEIRS}]
HALVES = ("r_replicated",)
shards = pytest.mark.skipif(not ddp_cases.SHARDS, reason="needs a PyTorch that shards on the CPU")


@pytest.fixture(scope="module")
def alone() -> Results:
    return ddp_cases.run_all(SAME)


@pytest.fixture(scope="module")
def found(tmp_path_factory: Any) -> dict[int, list[Results]]:
    return in_processes("tests.ddp_cases", tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module", params=WORLDS)
def ranks(request: pytest.FixtureRequest, found: dict[int, list[Results]]) -> list[Results]:
    """What every process of a run found, by rank."""
    return found[request.param]


@pytest.mark.parametrize("name", SAME)
def test_counts_are_those_of_one_process(name: str, ranks: list[Results], alone: Results) -> None:
    for results in ranks:
        for key in ("n", "outcomes", "layers", "sizes", "history", "message", "notes", "placebo",
                    "attributed"):  # fmt: skip
            assert repr(results[name][key]) == repr(alone[name][key]), key  # NaN is NaN


@pytest.mark.parametrize("name", SAME)
def test_columns_are_those_of_one_process(name: str, ranks: list[Results], alone: Results) -> None:
    expected = alone[name]["columns"]
    assert {"r", "mean", "mean_over_positions"} <= set(expected)
    if name not in ("one_sample", "own_advantage") and "sharded" not in name:
        assert expected["attribution"].isfinite().any()
    for column, values in expected.items():
        if name in UNORDERED and (column in HALVES or column.startswith(BY_POSITION)):
            continue
        tolerance = 1e-5 if column.startswith(("attribution", "ablation")) else 1e-6
        # Statistics are not bounded as correlations are: relative to their size.
        relative = 1e-4 if column == "contrast_t" else tolerance
        for rank, results in enumerate(ranks):
            if column.startswith("ablation") and rank:
                continue  # evidence is gathered by one process
            found = results[name]["columns"][column]
            torch.testing.assert_close(
                found, values, rtol=relative, atol=tolerance, equal_nan=True, msg=column
            )


@pytest.mark.parametrize("name", SAME)
def test_all_processes_can_monitor_the_same_numbers(
    name: str, ranks: list[Results], alone: Results
) -> None:
    expected = alone[name]["monitored"]
    assert "neurocorr/outcomes/only_model" in expected
    for results in ranks:
        assert results[name]["monitored"] == pytest.approx(expected, abs=1e-6, nan_ok=True)
        assert not results[name]["advised"], "Lightning's advice to reduce what is the same"


def test_a_last_report_made_late_on_the_validated_weights(ranks: list[Results]) -> None:
    alone = ddp_cases.run_all(["held_and_averaged"])["held_and_averaged"]
    for rank, results in enumerate(ranks):
        found = results["held_and_averaged"]
        assert (found["outcomes"], found["epochs"]) == (alone["outcomes"], 1)
        assert found["monitored"] == pytest.approx(alone["monitored"], abs=1e-6, nan_ok=True)
        for column in ("r", "r_within_class", "attribution", *(["ablation"] if not rank else [])):
            expected = alone["columns"][column]
            assert expected.isfinite().any(), column
            torch.testing.assert_close(
                found["columns"][column], expected, rtol=1e-5, atol=1e-5, equal_nan=True, msg=column
            )


def test_exemplars_are_the_same_samples(ranks: list[Results], alone: Results) -> None:
    found, expected = ranks[0]["two_hundred"]["panels"], alone["two_hundred"]["panels"]
    assert len(expected) == 3 * 3
    assert any(expected)
    for mine, theirs in zip(found, expected, strict=True):
        assert [(s[0], s[2], s[3]) for s in mine] == [(s[0], s[2], s[3]) for s in theirs]
        for a, b in zip(mine, theirs, strict=True):
            assert a[1] == pytest.approx(b[1], abs=1e-5, nan_ok=True)


def test_samples_and_their_exemplars_are_those_of_one_process(
    ranks: list[Results], alone: Results
) -> None:
    kept = 0
    for name in SAME:
        found, expected = ranks[0][name], alone[name]
        if name in UNORDERED or not expected["report"]:
            continue
        if name == "text_ids":  # in another order, but each with its own answers
            rows = [
                sorted(zip(*(part["samples"][k] for k in ("ids", "target", "model")), strict=True))
                for part in (found, expected)
            ]
            assert rows[0] == rows[1]
            continue
        assert found["samples"] == expected["samples"], name
        kept += "any" in found["samples"]
    assert kept


def test_ids_say_which_samples_they_are(ranks: list[Results], alone: Results) -> None:
    found, expected = ranks[0]["text_ids"], alone["text_ids"]
    strongest = [group for i, group in enumerate(expected["panels"]) if i % 3 < 2]
    assert len(strongest) == 2 * 3
    assert sum(map(len, strongest)) >= 15
    mine = [group for i, group in enumerate(found["panels"]) if i % 3 < 2]
    for group, other in zip(strongest, mine, strict=True):
        for a, b in zip(group, other, strict=True):
            assert a[0] == b[0] == -1  # a sampler inside of Lightning's: no positions
            assert a[1] == pytest.approx(b[1], abs=1e-5)
            assert a[2:] == b[2:]
    data = ddp_cases.Pictures(61)
    sums = {f"sum {float(x.sum()):.5f}" for x in data.x}
    for results in (found, expected):
        assert len(results["images"]) > 8
        assert set(results["images"]) <= sums
        assert not any("exemplars" in note for note in results["notes"])


def test_ablation_was_made(alone: Results) -> None:
    assert alone["two_hundred"]["columns"]["ablation"].isfinite().any()


def test_all_processes_report_the_same(ranks: list[Results]) -> None:
    for name, first in ranks[0].items():
        if "columns" not in first:
            continue
        for results in ranks[1:]:
            for column in ("r", "r_within_class", "attribution", "mean"):
                if column in first["columns"]:
                    mine, theirs = results[name]["columns"][column], first["columns"][column]
                    assert torch.equal(mine.nan_to_num(7.0), theirs.nan_to_num(7.0)), (name, column)
            for key in ("n", "outcomes", "layers", "history", "notes"):
                assert repr(results[name][key]) == repr(first[key]), (name, key)


@pytest.mark.parametrize("name", ["layer_missing_in_one_batch", "layer_missing_in_other_ranks"])
def test_a_layer_that_one_process_lacks_is_left_out_in_all(
    name: str, ranks: list[Results], alone: Results
) -> None:
    expected = alone["seventeen"]["columns"]
    for results in ranks:
        assert results[name]["layers"] == ["net.0", "net.3", "net.5"]
        assert "Layer extra was left out" in results[name]["notes"][0]
        for column in ("r", "attribution"):
            torch.testing.assert_close(
                results[name]["columns"][column], expected[column],
                rtol=1e-5, atol=1e-5, equal_nan=True,
            )  # fmt: skip


def test_a_layer_whose_width_differs_between_processes_is_left_out(ranks: list[Results]) -> None:
    for results in ranks:
        assert results["widths_that_differ"]["layers"] == ["net.5"]
        assert "neurons in one process and" in results["widths_that_differ"]["notes"][0]


def test_attribution_of_some_processes_only_is_none(ranks: list[Results]) -> None:
    for results in ranks:
        found = results["unattributed_in_one_process"]
        assert found["columns"]["attribution"].isnan().all()
        assert found["columns"]["r"].isfinite().any()
        assert "No attribution: the forward" in found["notes"][-1]


def test_a_placebo_of_some_processes_only_is_none(ranks: list[Results]) -> None:
    for rank, results in enumerate(ranks):
        found = results["placebo_fails_in_one_process"]
        assert found["placebo"]["seeds"] == ()
        assert found["columns"]["r"].isfinite().any()
        assert any("try a placebo" in text for text in found["said"]) == (rank == len(ranks) - 1)


def test_a_baseline_that_fails_in_one_process_is_a_warning_in_all(ranks: list[Results]) -> None:
    for rank, results in enumerate(ranks):
        found = results["breaks_in_one_process"]
        assert found["epochs"] == 3
        assert [entry[2] for entry in found["history"]] == [0, 2]
        last = rank == len(ranks) - 1
        said = "the reading service is down" if last else "another process could not finish"
        assert any(said in text for text in found["said"])


SAW = "saw the same samples"


def test_samples_that_every_process_saw_are_said(ranks: list[Results], alone: Results) -> None:
    for results in ranks:
        for name in ("no_distributed_sampler", "unsharded_stream"):
            found = results[name]
            assert found["n"] == 17 * len(ranks)
            torch.testing.assert_close(found["columns"]["r"], alone["seventeen"]["columns"]["r"])
            assert sum(SAW in text for text in found["said"]) == 1
            assert sum(SAW in text for text in found["notes"]) == 1
        for name in ("sharded_by_hand", "sharded_stream", "seventeen"):
            assert not any(SAW in text for text in results[name]["said"])
        assert results["sharded_by_hand"]["n"] == 16 - 16 % len(ranks)


def test_neurons_that_only_rounding_moves_have_no_r(ranks: list[Results], alone: Results) -> None:
    for results in (*ranks, alone):
        found = results["fixed_by_a_norm"]
        assert found["columns"]["r"].isnan().tolist() == [True] * 5 + [False] * 7
        assert any("same activation for all samples" in note for note in found["notes"])


def test_each_loader_that_nobody_shares_out_is_looked_at(ranks: list[Results]) -> None:
    for results in ranks:
        found = results["one_of_two_loaders_shared_out"]
        assert found["n"] == 17 * len(ranks) + 11
        assert sum(SAW in text for text in found["notes"]) == 1
        places = [place for place in found["samples"]["position"] if place >= 0]
        assert sorted(places) == list(range(17, 28))


def test_it_is_said_where_nothing_tells_what_processes_saw(ranks: list[Results]) -> None:
    for results in ranks:
        found = results["regression_without_a_sampler"]
        for texts in (found["said"], found["notes"]):
            assert sum("do not tell whether all saw the same ones" in text for text in texts) == 1


def test_wrong_labels_in_one_process_are_an_error_in_all(ranks: list[Results]) -> None:
    for results in ranks:
        assert "got 9 for 1 samples" in results["labels_out_of_range"]["error"]


def test_a_fit_ends_with_pictures_in_one_process(ranks: list[Results]) -> None:
    assert ranks[0]["fitted"]["panels"]
    assert not ranks[1]["fitted"]["panels"]
    assert [entry[2] for entry in ranks[0]["late_snapshot"]["history"]] == [1, 2]


@shards
def test_a_sharded_model_is_fitted(ranks: list[Results]) -> None:
    for results in ranks:
        found = results["sharded_and_fitted"]
        assert [entry[0] for entry in found["history"]] == [0, 1, 2]
        assert found["n"] == 17
        assert found["columns"]["r"].isfinite().all()


@shards
def test_what_a_sharded_model_cannot_do_is_refused(ranks: list[Results]) -> None:
    for results in ranks:
        refused = results["sharded_evidence"]["refused"]
        for what in ("attribution", "ablation", "second_pass", "visualizer"):
            assert "keeps the whole model in each process, but got ModelParallel" in refused[what]
            assert "Pass attribution=False, ablation=None" in refused[what]
        assert "sharded ones, which cannot be swapped" in refused["snapshot"]
        assert (
            "`tensor_parallel_size` of ModelParallelStrategy to be 1" in refused["tensor parallel"]
        )
