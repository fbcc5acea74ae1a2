"""``torchkiln inspect --steps`` on engine files with a cuda segment, on a machine that has no GPU or another one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from tests.backends.cuda.fusion import lowered
from tests.backends.cuda.run_plan import build_plan
from torch import nn

from torchkiln.backends.cuda.passes.pipeline import fuse
from torchkiln.backends.cuda.plan import Bundle, Code, Plan, encode_bundle
from torchkiln.backends.cuda.specialize import specialize
from torchkiln.engine.artifact import Artifact
from torchkiln.engine.contents import EngineContents, EngineSegment
from torchkiln.engine.file import write_engine_file
from torchkiln.engine.report import Report
from torchkiln.engine.structure import Structure
from torchkiln.inputs import Input

from .conftest import invoke, invoke_json

#: No GPU has it, so that nothing here is ever run.
TARGET = {"compute_capability": "1.0", "gpu": "Made Up"}
REJECTS = [("conv_1", "its result [is] read twice")]


class Net(nn.Module):
    """Two convolutions, one with an activation, and an operator that only torch has."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        return self.b(torch.relu(self.a(x))).cumsum(1)


def made_plan(batch: int) -> Plan:
    shape = (batch, 3, 7, 9)
    graph_module = specialize(lowered(Net(), [shape]), [shape])
    fuse(graph_module)
    plan, _, _ = build_plan(graph_module)
    plan.infos = [dataclasses.replace(info, median_us=None if info.tactic == "torch" else 2.0 * batch) for info in plan.infos]
    return plan


@pytest.fixture(scope="module")
def plans() -> dict[int, Plan]:
    return {batch: made_plan(batch) for batch in (1, 2, 5)}


def write(path: Path, plans: dict[int, Plan], low: int = 1, high: int = 5) -> Path:
    example = torch.zeros(2, 3, 7, 9)
    sizes = tuple(plans) if len(plans) > 1 else ()
    code = Code(b"machine code", "k", 128, 0, False, False)
    count = 1 + max(getattr(step.run, "code", 0) for plan in plans.values() for step in plan.steps)
    bundle = Bundle(list(plans.values()), [code] * count, TARGET, sizes, (True,) if sizes else (), REJECTS)
    contents = EngineContents(
        device="cuda",
        inputs=(Input(min_shape=(low, 3, 7, 9), opt_shape=(2, 3, 7, 9), max_shape=(high, 3, 7, 9), name="x"),),
        args_structure=Structure.of(((example,), {}))[0],
        outputs_structure=Structure.of(example)[0],
        output_names=("y",),
        output_slots=(1,),
        slot_count=2,
        segments=(EngineSegment("segment_0", "cuda", "fp32", (0,), (1,), Artifact(encode_bundle(bundle), native_code=True)),),
        report=Report(model="net", device="cuda", backend="cuda", precision="fp32", enabled_precisions=["fp32"]),
        targets=("sm_90",),
    )
    write_engine_file([contents], path)
    return path


def test_streams_are_shown_where_there_are_several(tmp_path: Path) -> None:
    plan = made_plan(2)
    one = write(tmp_path / "one.kiln", {2: plan}, 2, 2)
    assert "stream" not in invoke("inspect", one, "--steps", "--trusted").stdout
    last = len(plan.steps) - 1
    plan.steps[0] = dataclasses.replace(plan.steps[0], stream=1)
    plan.steps[1] = dataclasses.replace(plan.steps[1], waits=(0,))
    several = dataclasses.replace(plan, streams=2, measured=((1, 12.25), (2, 10.5)))
    result = invoke("inspect", write(tmp_path / "two.kiln", {2: several}, 2, 2), "--steps", "--trusted")
    assert result.exit_code == 0, result.output
    text = " ".join(result.stdout.split())
    assert "streams: 2; the whole plan when it was built: 12.2 us on 1, 10.5 us on 2" in text
    assert last > 0


@pytest.fixture(scope="module")
def cuda_engine(plans, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("steps") / "net.kiln", plans)


def test_the_opt_plan_is_shown(cuda_engine: Path, plans: dict[int, Plan]) -> None:
    (table,) = invoke_json("inspect", cuda_engine, "--steps")["steps"]
    plan = plans[2]
    assert (table["batch"], table["batch_sizes"], table["gpu"], table["targets"]) == (2, [1, 2, 5], "Made Up", ["sm_90"])
    assert [row["label"] for row in table["rows"]] == [info.label for info in plan.infos]
    assert sorted(n for row in table["rows"] for n in row["steps"]) == list(range(len(plan.steps)))
    assert (table["arena_bytes"], table["tensor_bytes"]) == (plan.arena_bytes, plan.tensor_bytes)
    assert sum(table["tactics"].values()) == len(plan.steps)
    assert table["rejects"] == [list(reject) for reject in REJECTS]
    measured = [info for info in plan.infos if info.median_us is not None]
    assert 0 < len(measured) < len(plan.infos)
    assert table["total_us"] == 4.0 * len(measured)
    for row, info in zip(table["rows"], plan.infos, strict=True):
        assert row["median_us"] == info.median_us
        assert row["bytes_per_s"] == (None if info.median_us is None else pytest.approx(info.bytes / 4e-6))
    assert table["measured_here"] is False
    assert table["roofline"] is None


def test_another_batch(cuda_engine: Path) -> None:
    (table,) = invoke_json("inspect", cuda_engine, "--steps", "--batch", "5")["steps"]
    assert table["batch"] == 5
    assert {row["shape"][0] for row in table["rows"]} == {5}
    result = invoke("inspect", cuda_engine, "--steps", "--batch", "3")
    assert result.exit_code == 1
    assert "UserError: --batch 3: segment segment_0 (sm_90) has no plan of that batch size: expected one of 1, 2, 5" in result.stderr


def test_it_shows_them(cuda_engine: Path, plans: dict[int, Plan]) -> None:
    result = invoke("inspect", cuda_engine, "--steps")
    assert result.exit_code == 0, result.output
    for text in (
        "batch 2 (built for 1, 2, 5)",
        "times: the tuner's figures of Made Up, kept in the file: ",
        "no % of roofline: the limits of Made Up are known only where there is one",
        "conv",
        "4.00",
        f"{len(plans[2].steps)} steps: ",
        "left to torch: aten.cumsum.default (",
        "its result [is] read twice",
    ):
        assert text in result.stdout
    assert "% of roofline │" not in result.stdout
    assert "% of roofline ┃" not in result.stdout


def test_trust_alone_measures_nothing_on_another_machine(cuda_engine: Path) -> None:
    plain, trusted = (invoke_json("inspect", cuda_engine, "--steps", *more)["steps"] for more in ((), ("--trusted",)))
    assert plain == trusted


@pytest.fixture
def made_up_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with that GPU, whose limits are made up."""
    from torchkiln.backends.cuda import roofline

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: TARGET["gpu"])
    monkeypatch.setattr("torchkiln.backends.cuda.runtime.describe_target", lambda device: TARGET)
    monkeypatch.setattr(roofline, "measure_roofline", lambda device: roofline.Roofline(1e9, {"float32": 1e12}))


@pytest.mark.usefixtures("made_up_gpu")
def test_with_trust_the_steps_are_measured(cuda_engine: Path, plans: dict[int, Plan], monkeypatch: pytest.MonkeyPatch) -> None:
    """The runner alone is replaced: it takes 1 us for the first step, 2 us for the second, ..."""

    class Runner:
        def time_steps(self, inputs, repeats):
            assert [tuple(value.shape) for value in inputs] == [(5, 3, 7, 9)]
            return [float(number) for number in range(1, len(plans[5].steps) + 1)]

    random = Input.random
    monkeypatch.setattr(Input, "random", lambda self, shape=None, *, seed=0, device="cpu": random(self, shape, seed=seed))
    monkeypatch.setattr("torchkiln.backends.cuda.runtime.load", lambda artifact, device, num_threads: Runner())
    (table,) = invoke_json("inspect", cuda_engine, "--steps", "--trusted", "--batch", "5")["steps"]
    assert table["measured_here"] is True
    assert [row["median_us"] for row in table["rows"]] == [sum(n + 1 for n in row["steps"]) for row in table["rows"]]
    assert "measured now on Made Up" in invoke("inspect", cuda_engine, "--steps", "--trusted", "--batch", "5").stdout


@pytest.mark.usefixtures("made_up_gpu")
def test_with_a_roofline_there_is_a_column(cuda_engine: Path) -> None:
    result = invoke("inspect", cuda_engine, "--steps")
    assert result.exit_code == 0, result.output
    assert "% of roofline" in result.stdout
    assert "roofline, measured on this GPU: 1 GB/s, 1.0 TFLOP/s float32" in result.stdout
    assert "measuring runs the file's machine code, which needs --trusted" in result.stdout
    (table,) = invoke_json("inspect", cuda_engine, "--steps")["steps"]
    known = [row for row in table["rows"] if row["median_us"] is not None]
    assert all(row["roofline_share"] >= row["bytes_per_s"] / 1e9 * 0.999 for row in known)
    assert known


def test_fixed_shapes(plans: dict[int, Plan], tmp_path: Path) -> None:
    path = write(tmp_path / "fixed.kiln", {2: plans[2]}, 2, 2)
    (table,) = invoke_json("inspect", path, "--steps")["steps"]
    assert (table["batch"], table["batch_sizes"]) == (None, [])
    assert "built for fixed shapes" in invoke("inspect", path, "--steps", "--batch", "2").stderr


def test_without_steps_nothing_changes(cuda_engine: Path) -> None:
    assert "steps" not in invoke_json("inspect", cuda_engine)


@pytest.mark.parametrize("option", [("--batch", "2"), ("--trusted",)])
def test_options_of_steps_alone(cuda_engine: Path, option: tuple[str, ...]) -> None:
    result = invoke("inspect", cuda_engine, *option)
    assert result.exit_code == 2
    assert f"{option[0]} means nothing without --steps" in result.stderr


def test_an_engine_without_a_cuda_segment(tmp_path: Path) -> None:
    from tests.engine.tiny_engine import tiny_contents

    write_engine_file([tiny_contents()], tmp_path / "tiny.kiln")
    result = invoke("inspect", tmp_path / "tiny.kiln", "--steps")
    assert result.exit_code == 1
    assert "UserError: --steps: expected an engine with a segment of the cuda backend, got segments of torch" in result.stderr
