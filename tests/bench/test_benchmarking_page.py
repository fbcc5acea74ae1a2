"""docs/benchmarking.md: it names what there is, and its program runs."""

import re
from pathlib import Path

from torchkiln.bench.peers import PEERS, PRESETS
from torchkiln.bench.result import STATUSES
from torchkiln.bench.results_file import read_json
from torchkiln.bench.tables import COLUMNS

PAGE = (Path(__file__).parents[2] / "docs" / "benchmarking.md").read_text()


def test_every_peer_preset_status_and_column_is_explained():
    for name in (*PEERS, *PRESETS):
        assert f"`{name}`" in PAGE
    for name in STATUSES:
        assert name == "ok" or f"| {name} |" in PAGE
    for name in COLUMNS:
        assert re.search(rf"^\| .*\b{re.escape(name)}", PAGE, re.MULTILINE), name


def test_the_program_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    program = next(code for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "run_benchmark(request)" in code)
    quick = program.replace("min_time_s=0.5", "min_time_s=0.001, min_samples=3, rounds=2, warm_up_s=0.0")
    # Which backends there are is other tests' business; here one quick peer and the quickest engine will do.
    quick = quick.replace('peers=["seed", "openvino"]', 'peers=["eager"], engine_options={"backend": "torch"}')
    assert quick.count("engine_options") == quick.count("min_samples") == 1
    exec(compile(quick, "docs/benchmarking.md", "exec"), {})
    rows = read_json("results.json").rows
    assert {row.status for row in rows if row.runner == "torchkiln"} == {"ok"}
    assert Path("report/report.md").exists()
    assert "torchkiln" in capsys.readouterr().out
