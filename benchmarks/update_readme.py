"""Write the README's benchmark tables from benchmarks/results: python benchmarks/update_readme.py"""

from __future__ import annotations

import re
from pathlib import Path

from torchkiln.bench import read_json
from torchkiln.bench.ratios import best_engine, best_peer, find_row, speed_up
from torchkiln.bench.result import BenchmarkResult, Row
from torchkiln.bench.tables import error_text

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
BLOCK = re.compile(r"(<!-- results: ([\w-]+) -->)\n.*?(<!-- end -->)", re.DOTALL)


def block(result: BenchmarkResult) -> str:
    """One line a model: eager fp32, the best peer of all, torchkiln, and the same among fp32 runners alone; "-" for what was not measured."""
    lines = [
        "| model, input | eager fp32 | best peer | torchkiln | speed-up over eager fp32 | relative error | best fp32 peer | torchkiln fp32 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (model, shape, _), rows in result.groups().items():
        eager, peer = find_row(rows, "eager", "fp32"), best_peer(rows)
        # The row "auto" is what a user gets; the fastest of several rows of one engine would be luck.
        engine = best_engine([row for row in rows if row.precision == "auto"]) or best_engine(rows)
        peer32, engine32 = best_peer(rows, "fp32"), best_engine([row for row in rows if row.precision == "fp32"])
        factor = speed_up(eager, engine)
        cells = [
            f"{model}, {shape}",
            milliseconds(eager),
            f"{milliseconds(peer)} ({peer.runner} {peer.precision})" if peer else "-",
            f"**{milliseconds(engine)}**" if engine else "-",
            f"{factor:.1f}x" if factor else "-",
            error_text(engine.relative_error) if engine else "-",
            f"{milliseconds(peer32)} ({peer32.runner})" if peer32 else "-",
            milliseconds(engine32),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def milliseconds(row: Row | None) -> str:
    return "-" if row is None else f"{row.median_ms:.2f}"


def render(readme: str) -> str:
    """The README with every block between ``<!-- results: NAME -->`` and ``<!-- end -->`` made anew from results/NAME.json."""

    def fill(match: re.Match[str]) -> str:
        return f"{match[1]}\n{block(read_json(RESULTS / f'{match[2]}.json'))}\n{match[3]}"

    return BLOCK.sub(fill, readme)


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(render(path.read_text()))
