"""options: what torchkiln asks of Inductor, and why. Names are torch._inductor.config's (``torch._inductor.list_options()``)."""

from __future__ import annotations

from typing import Any

import torch

from ...log import STEPS, log
from .availability import find_compiler


def inductor_options(device: torch.device, weights_beside: bool) -> dict[str, Any]:
    """The options for ``device`` that this torch has; one that an older torch lacks is left out, and the log says so.

    ``weights_beside``: put weights beside the library in the package, not in it.
    """
    from torch._inductor import list_options

    wanted = {**_COMMON, **(_WEIGHTS_BESIDE if weights_beside else {}), **(_CUDA if device.type == "cuda" else _CPU)}
    if compiler := find_compiler():
        wanted["cpp.cxx"] = (compiler,)
    known = set(list_options())
    for name in sorted(wanted.keys() - known):
        log(STEPS, "inductor: torch %s has no option %s", torch.__version__, name)
    return {name: value for name, value in wanted.items() if name in known}


_COMMON: dict[str, Any] = {
    "aot_inductor.package": True,
    # Weights are constants: batch norm folds, weights are packed for oneDNN or laid out channels-last once, at build.
    "freezing": True,
    # An engine must not depend on what another build left in a cache of /tmp, which is read with pickle.
    "fx_graph_cache": False,
}

#: A library that ran in a thread stays mapped while the thread lives (a thread-local string in it pins it): each load would leak weights in it.
_WEIGHTS_BESIDE: dict[str, Any] = {
    "aot_inductor.package_constants_in_so": False,
    "aot_inductor.package_constants_on_disk_format": "binary_blob",
}

_CPU: dict[str, Any] = {
    # The thread count of the machine that runs it, not of the machine that built it.
    "cpp.dynamic_threads": True,
}

# Inductor's defaults. max_autotune had not finished ResNet-50 on an H200 after five minutes (a race of Triton templates for every convolution and
# product); coordinate_descent_tuning left ResNet-50 at 0.48 ms and took EfficientNet-B0's build to two minutes.
_CUDA: dict[str, Any] = {}
