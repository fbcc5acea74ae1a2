"""The benchmark: the engine and its peers, measured side by side, with the error of each."""

from .report import write_report
from .request import BenchmarkModel, BenchmarkRequest
from .result import BenchmarkResult, Latency, Row, merge_results
from .results_file import read_json, write_json
from .run import run_benchmark
from .tables import print_table

__all__ = [
    "BenchmarkModel",
    "BenchmarkRequest",
    "BenchmarkResult",
    "Latency",
    "Row",
    "merge_results",
    "print_table",
    "read_json",
    "run_benchmark",
    "write_json",
    "write_report",
]
