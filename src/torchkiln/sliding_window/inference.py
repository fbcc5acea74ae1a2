"""sliding_window_inference: the signature and the results of MONAI's function of that name."""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from ..errors import UserError
from ..log import SUMMARY, log
from ..pool.devices import parse_device
from ..pool.pool import Pool
from ..pool.replica import Replica, Result, mark_used, ready_events
from .bar import progress_bar
from .grid import Box, Grid, buffered, make_grid, per_dimension, read_overlap, read_roi_size, whole
from .job import Job, Ticks
from .outputs import pack
from .padding import crop, find_padding, pad, read_padding_mode
from .predictor import Batching, find_device, plan_batches
from .run_box import BoxResult, DoesNotFit, run_box
from .stitch import Stitch
from .weights import CACHE, read_mode


@torch.no_grad()
def sliding_window_inference(
    inputs: torch.Tensor,
    roi_size: Sequence[int] | int,
    sw_batch_size: int,
    predictor: Callable[..., Any],
    overlap: Sequence[float] | float = 0.25,
    mode: str = "constant",
    sigma_scale: Sequence[float] | float = 0.125,
    padding_mode: str = "constant",
    cval: float = 0.0,
    sw_device: torch.device | str | None = None,
    device: torch.device | str | None = None,
    progress: bool = False,
    roi_weight_map: torch.Tensor | None = None,
    process_fn: Callable[..., Any] | None = None,
    buffer_steps: int | None = None,
    buffer_dim: int = -1,
    with_coord: bool = False,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Run ``predictor`` on overlapping windows of ``inputs`` and blend what it returns. As ``monai.inferers.sliding_window_inference``, whose
    parameters these are, in its order; docs/sliding-window.md says what differs.

    Args:
        inputs: (batch, channels, *space), of any number of spatial dimensions.
        roi_size: of a window: one number, or one for each spatial dimension; None, 0 or a negative number is the image's size.
        sw_batch_size: windows in a call of ``predictor``. An engine gets the nearest batch size that it takes.
        predictor: an Engine, a Pool (each replica takes its share of the windows), an nn.Module or any callable. It is called with
            (windows, channels, *roi_size) and returns a tensor, or a sequence or dict of tensors, (windows, channels, *any size).
        overlap: of windows, as a part of ``roi_size``, at least 0 and less than 1; one number, or one for each dimension.
        mode: "constant": every voxel of a window counts the same; "gaussian": less towards its edges.
        sigma_scale: for "gaussian": the standard deviation as a part of ``roi_size``; one number, or one for each dimension.
        padding_mode: for images smaller than a window: "constant", "reflect", "replicate" or "circular".
        cval: the value for "constant".
        sw_device: where windows are blended; default: that of an engine or pool, else that of ``inputs``.
        device: where the result is; default: that of ``inputs``.
        progress: whether to draw a bar on standard error.
        roi_weight_map: a weight for each voxel of a window, (*roi_size) or (1, 1, *roi_size), in place of ``mode``'s.
        process_fn: called as ``process_fn(outputs, windows, importance_map)`` for each batch; returns other outputs and another map. With a Pool,
            from several threads at once.
        buffer_steps: how many steps of windows along ``buffer_dim`` are put together before they go to ``device``, an image at a time.
        buffer_dim: a spatial dimension, from 0, or from the end.
        with_coord: call ``predictor(windows, slices, ...)``, where ``slices`` has for each window a list of a slice for each dimension of ``inputs``.
        *args, **kwargs: passed to ``predictor``; a tensor ``condition`` of the size of ``inputs`` is cut into the same windows.

    Returns:
        (batch, channels, *space) in the dtype of ``inputs`` (float32 for integers), summed in float32 or wider; a tuple or dict of them where the
        predictor returns one.

    Raises:
        UserError: an argument that makes no sense, or outputs that cannot be blended; InputMismatch: windows are not what an engine takes;
        ReplicaFailed: anything else in a Pool; and what ``predictor`` raises.
    """
    job, padding = _read_job(
        inputs, roi_size, sw_batch_size, predictor, overlap, mode, sigma_scale, padding_mode, cval, roi_weight_map, process_fn, buffer_steps,
        with_coord, args, kwargs,
    )  # fmt: skip
    home = parse_device(device, "sliding_window_inference: device") if device is not None else inputs.device
    where = find_device(
        predictor, parse_device(sw_device, "sliding_window_inference: sw_device") if sw_device is not None else inputs.device, sw_device is not None
    )
    images = inputs.shape[0]
    boxes = _find_boxes(job.grid, images, buffer_steps, buffer_dim)
    if isinstance(predictor, Pool) and len(boxes) == 1:
        boxes = boxes[0].shares(len(predictor))
    counts = [box.window_count for box in boxes]
    job.batching = plan_batches(predictor, operator.index(sw_batch_size), max(counts))
    with progress_bar() if progress else nullcontext():
        job.ticks = Ticks(sum(counts))
        if isinstance(predictor, Pool):
            keys, outputs = _run_on_pool(job, boxes, predictor, images, home)
        else:
            keys, outputs = _run(job, boxes, predictor, where, images, home)
    dtype = inputs.dtype if inputs.is_floating_point() or inputs.is_complex() else job.dtype
    size = tuple(inputs.shape[2:])
    final = [crop(output, padding, size, job.grid.roi_size).to(home, dtype).contiguous() for output in outputs]
    return pack(keys, [_like(output, inputs) for output in final])


def _run(
    job: Job, boxes: list[Box], predictor: Any, where: torch.device, images: int, home: torch.device
) -> tuple[list[Any] | None, list[torch.Tensor]]:
    """All boxes on one device, one after another."""
    stitch = Stitch(images, home)

    def take(result: BoxResult) -> None:
        if len(boxes) == 1 and result.box == boxes[0]:
            stitch.take_whole(result)
        else:
            stitch.add(stitch.bring(result))

    with torch.cuda.device(where) if where.type == "cuda" else nullcontext():
        for box in boxes:
            _run_or_halve(job, box, predictor, where, take, is_own=False)
    return stitch.keys, stitch.outputs


def _run_on_pool(job: Job, boxes: list[Box], pool: Pool, images: int, home: torch.device) -> tuple[list[Any] | None, list[torch.Tensor]]:
    """Each replica takes one box after another."""
    stitch = Stitch(images, home)
    ready = ready_events((job.inputs, job.condition, job.roi_weight_map, job.args, job.kwargs))

    def is_whole(result: BoxResult) -> bool:
        return len(boxes) == 1 and result.box == boxes[0]

    def run_one(replica: Replica, box: Box) -> Result:
        found: list[BoxResult] = []

        def take(result: BoxResult) -> None:
            found.append(result if is_whole(result) else stitch.bring(result))

        mark_used((job.inputs, job.condition, job.roi_weight_map))
        own = replace(job, args=replica.bring(tuple(job.args)), kwargs=replica.bring(dict(job.kwargs)))
        with torch.no_grad():
            _run_or_halve(own, box, replica.engine, replica.device, take, is_own=True)
        return Result(found, replica.record())

    pending: deque[Future[Result]] = deque()
    try:
        for box in boxes:
            future = pool.run_on_replica(partial(run_one, box=box), ready, _describe(box, job.grid))
            if not pending:
                # The first weights come with the first box. Where it ended without, nobody waits for them any longer.
                future.add_done_callback(lambda _: job.first_weights.cancel())
            pending.append(future)
        while pending:
            result = pending.popleft().result()
            Result([part.value for found in result.value for part in found.parts], result.done).wait()
            for found in result.value:
                if is_whole(found):
                    stitch.take_whole(found)
                else:
                    stitch.add(found)
    finally:
        for future in pending:
            future.cancel()
        for future in pending:
            if not future.cancelled():
                future.exception()
    return stitch.keys, stitch.outputs


def _run_or_halve(job: Job, box: Box, predictor: Any, where: torch.device, take: Callable[[BoxResult], None], *, is_own: bool) -> None:
    """Give ``take`` the result of a box, or of its halves, and theirs, where the device has no room for it. No result is held here after that."""
    try:
        result = run_box(job, box, predictor, where, is_own=is_own)
    except (DoesNotFit, torch.OutOfMemoryError) as error:
        halves = box.halves()
        if halves is None:
            raise
        reason = str(error).splitlines()[0]
    else:
        take(result)
        return
    log(SUMMARY, "sliding windows: %s in two halves: %s has no room for it (%s)", _describe(box, job.grid), where, reason)
    CACHE.clear()
    if where.type == "cuda":
        torch.cuda.empty_cache()
    for half in halves:
        _run_or_halve(job, half, predictor, where, take, is_own=is_own)


def _describe(box: Box, grid: Grid) -> str:
    space = ", ".join(f"{low}:{high}" for low, high in box.region(grid))
    return f"images {box.images[0]}:{box.images[1]}, voxels [{space}]"


def _read_job(
    inputs: torch.Tensor,
    roi_size: Any,
    sw_batch_size: int,
    predictor: Any,
    overlap: Any,
    mode: Any,
    sigma_scale: Any,
    padding_mode: Any,
    cval: float,
    roi_weight_map: torch.Tensor | None,
    process_fn: Callable[..., Any] | None,
    buffer_steps: int | None,
    with_coord: bool,
    args: Sequence[Any],
    kwargs: dict[str, Any],
) -> tuple[Job, Any]:
    if not isinstance(inputs, torch.Tensor) or inputs.dim() < 3 or not inputs.numel():
        what = f"a tensor of shape {tuple(inputs.shape)}" if isinstance(inputs, torch.Tensor) else type(inputs).__name__
        raise UserError(f"sliding_window_inference: inputs: expected a tensor (batch, channels, *space), none of them 0, got {what}")
    if not hasattr(sw_batch_size, "__index__") or sw_batch_size < 1:
        raise UserError(f"sliding_window_inference: sw_batch_size: expected a whole number from 1, got {sw_batch_size!r}")
    if not callable(predictor):
        raise UserError(f"sliding_window_inference: predictor: expected an Engine, a Pool, a module or a function, got {type(predictor).__name__}")
    size = tuple(inputs.shape[2:])
    roi = read_roi_size(roi_size, size)
    overlaps = read_overlap(overlap, len(size))
    scales = tuple(float(scale) for scale in per_dimension(sigma_scale, len(size), "sigma_scale"))
    mode, padding_mode = read_mode(mode), read_padding_mode(padding_mode)
    if mode == "gaussian" and not all(scale > 0 for scale in scales):
        raise UserError(f"sliding_window_inference: sigma_scale: expected more than 0, got {sigma_scale!r}")
    padding = find_padding(size, roi)
    rest = dict(kwargs)
    condition = rest.pop("condition", None)
    if condition is not None:
        if not isinstance(condition, torch.Tensor) or condition.shape[:1] + condition.shape[2:] != inputs.shape[:1] + inputs.shape[2:]:
            got = tuple(condition.shape) if isinstance(condition, torch.Tensor) else type(condition).__name__
            raise UserError(f"sliding_window_inference: condition: expected the batch and space of inputs, {tuple(inputs.shape)}, got {got}")
        condition = pad(_plain(condition), padding, padding_mode, cval)
    image = pad(_plain(inputs), padding, padding_mode, cval)
    exact = inputs.dtype if inputs.is_floating_point() or inputs.is_complex() else torch.float32
    job = Job(
        image,
        condition,
        make_grid(tuple(image.shape[2:]), roi, overlaps),
        args,
        rest,
        with_coord,
        process_fn,
        mode,
        scales,
        None if roi_weight_map is None else _plain(torch.as_tensor(roi_weight_map)),
        torch.promote_types(exact, torch.float32),
        buffer_steps is not None and buffer_steps > 0,
        Batching(1),
        Ticks(0),
    )
    return job, padding


def _find_boxes(grid: Grid, images: int, buffer_steps: int | None, buffer_dim: int) -> list[Box]:
    if buffer_steps is None or buffer_steps <= 0:
        return [whole(grid, images)]
    rank = len(grid.starts)
    if not -rank <= buffer_dim < rank:
        raise UserError(f"sliding_window_inference: buffer_dim: expected {-rank} to {rank - 1}, got {buffer_dim}")
    return buffered(grid, images, int(buffer_steps), buffer_dim % rank)


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """Without a subclass such as MONAI's MetaTensor, whose every operation would carry its data along."""
    return tensor.as_subclass(torch.Tensor) if type(tensor) is not torch.Tensor else tensor


def _like(output: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """``output`` as a MetaTensor with the meta data of ``inputs``, where that is one."""
    if not hasattr(inputs, "copy_meta_from"):
        return output
    wrapped: Any = output.as_subclass(type(inputs))
    wrapped.copy_meta_from(inputs, copy_attr=False)
    return wrapped
