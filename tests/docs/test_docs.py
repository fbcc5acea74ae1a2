"""The documentation is what the code is: options, links, and the numbers that the README quotes."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from torchkiln.bench.result import BenchmarkResult, Latency, Row

ROOT = Path(__file__).parents[2]


def import_script(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # where dataclasses look up the annotations of their module
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[path.stem]
    return module


def test_options_page_is_up_to_date():
    module = import_script(ROOT / "docs/generate_options.py")
    assert (ROOT / "docs/options.md").read_text() == module.render(), "run: python docs/generate_options.py"


@pytest.mark.parametrize("script", sorted(ROOT.glob("benchmarks/*.py")), ids=lambda p: p.name)
def test_every_benchmark_script_imports(script):
    import_script(script)


def test_readme_shows_the_results():
    update_readme, text = import_script(ROOT / "benchmarks/update_readme.py"), (ROOT / "README.md").read_text()
    names = [match[2] for match in update_readme.BLOCK.finditer(text)]
    assert names
    missing = [name for name in names if not (ROOT / f"benchmarks/results/{name}.json").exists()]
    if missing:
        pytest.skip(f"not measured yet: {', '.join(missing)}")
    assert text == update_readme.render(text), "run: python benchmarks/update_readme.py"


def test_the_readmes_table_takes_no_wrong_engine_and_has_dashes_for_what_is_missing():
    update_readme = import_script(ROOT / "benchmarks/update_readme.py")

    def row(model, runner, precision, median, accurate=True):
        latency = Latency(*[median] * 7)
        return Row(model, "1x3", runner, precision, "cpu", "ok", latency, relative_error=1e-5, within_tolerance=accurate)

    rows = [
        row("a", "eager", "fp32", 8.0),
        row("a", "torchkiln", "fp32", 4.0),
        row("a", "torchkiln", "bf16", 1.0, accurate=False),
        row("b", "eager", "bf16", 6.0),
        row("b", "torchkiln", "bf16", 3.0),
    ]
    assert update_readme.block(BenchmarkResult({}, rows)).splitlines()[2:] == [
        "| a, 1x3 | 8.00 | 8.00 (eager fp32) | **4.00** | 2.0x | 1.0e-05 | 8.00 (eager) | 4.00 |",
        "| b, 1x3 | - | 6.00 (eager bf16) | **3.00** | - | 1.0e-05 | - | - |",
    ]


@pytest.mark.parametrize("page", sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]), ids=lambda p: p.name)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_architecture_names_every_folder():
    text = (ROOT / "docs/architecture.md").read_text()
    for folder in (ROOT / "src/torchkiln").iterdir():
        if folder.is_dir() and folder.name != "__pycache__":
            assert f"`{folder.name}/`" in text, folder.name
