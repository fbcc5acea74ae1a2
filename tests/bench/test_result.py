"""BenchmarkResult: grouping and merging."""

import pytest

from torchkiln.bench.result import merge_results
from torchkiln.errors import UserError

from .fakes import make_result, make_row


def test_rows_are_grouped_by_what_can_be_compared():
    rows = [make_row("eager"), make_row("eager", shape="1x3x9x9"), make_row("torchkiln"), make_row("eager", device="cuda:0")]
    groups = make_result(*rows).groups()
    assert list(groups) == [("net", "2x3x9x11", "cpu"), ("net", "1x3x9x9", "cpu"), ("net", "2x3x9x11", "cuda:0")]
    assert groups["net", "2x3x9x11", "cpu"] == [rows[0], rows[2]]


def test_merging_keeps_the_later_row_of_a_key_and_names_the_runs():
    first = make_result(make_row("eager", median=1.0), make_row("torchkiln", median=2.0))
    second = make_result(make_row("torchkiln", median=3.0), make_row("eager", model="other"), date="2026-01-02")
    third = make_result(make_row("torchkiln", model="third"))
    merged = merge_results([merge_results([first, second]), third])
    assert [(r.model, r.runner, r.median_ms) for r in merged.rows] == [
        ("net", "eager", 1.0),
        ("net", "torchkiln", 3.0),
        ("other", "eager", 1.0),
        ("third", "torchkiln", 1.0),
    ]
    assert [run["date"] for run in merged.runs] == ["2026-01-01", "2026-01-02", "2026-01-01"]
    assert merged.runs[1]["models"] == ["net", "other"]


@pytest.mark.parametrize("change", [{"cpu": {"model": "another"}}, {"num_threads": 1}, {"versions": {"torch": "2.14"}}, {"gpus": [{"name": "H200"}]}])
def test_runs_of_different_machines_do_not_merge(change):
    with pytest.raises(UserError, match=f"another {next(iter(change))}"):
        merge_results([make_result(make_row("eager")), make_result(make_row("torchkiln"), **change)])


def test_nothing_to_merge():
    with pytest.raises(UserError, match="at least one"):
        merge_results([])


def test_a_failed_row_sorts_last_and_says_why():
    row = make_row("eager", median=None)
    assert row.median_ms == float("inf")
    assert row.status_text == "failed: it | broke"
