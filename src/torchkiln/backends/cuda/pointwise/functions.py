"""functions: device functions that generated pointwise kernels call. Floating values come in float32 or float64, also for half tensors.

``PRECISE`` is True where the result is a float32 tensor: relative accuracy near float32's; without it the error is far below that of a half.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..kernels.activations import gelu, gelu_tanh, sigmoid, silu  # noqa: F401  (generated kernels import them from here)


@triton.jit
def divide(x, y, PRECISE: tl.constexpr):
    """x / y of floating values, correctly rounded where PRECISE."""
    if PRECISE:
        return tl.div_rn(x, y)
    return x / y


@triton.jit
def square_root(x, PRECISE: tl.constexpr):
    if PRECISE:
        return tl.sqrt_rn(x)
    return tl.sqrt(x)


@triton.jit
def larger(x, y):
    """torch.maximum: a NaN in either stays one."""
    if x.dtype.is_floating():
        return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)
    return tl.maximum(x, y)


@triton.jit
def smaller(x, y):
    """torch.minimum: a NaN in either stays one."""
    if x.dtype.is_floating():
        return tl.minimum(x, y, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(x, y)


@triton.jit
def expm1(x):
    """exp(x) - 1, without cancellation near 0."""
    if x.dtype == tl.float64:
        e = tl.exp(x)  # Kahan: the errors of e - 1 and log(e) cancel
        exact = tl.where(e == 1.0, x, (e - 1.0) * x / tl.log(e))
        return tl.where((x > -30.0) & (x < 30.0), exact, e - 1.0)
    series = x * (1.0 + x * (1 / 2 + x * (1 / 6 + x * (1 / 24 + x * (1 / 120 + x * (1 / 720 + x * (1 / 5040)))))))
    return tl.where((x > -0.5) & (x < 0.5), series, tl.exp(x) - 1.0)


@triton.jit
def log1p(x):
    """log(1 + x), without cancellation near 0. Source: Kahan; see Goldberg, What Every Computer Scientist Should Know About ..., theorem 4."""
    u = 1.0 + x
    return tl.where(u == 1.0, x, tl.where(u < 1e30, tl.log(u) * (x / (u - 1.0)), tl.log(u)))


@triton.jit
def tanh(x, PRECISE: tl.constexpr):
    if PRECISE:
        e = expm1(-2.0 * tl.abs(x))
        t = -e / (e + 2.0)
        return tl.where(x < 0, -t, t)
    return 2.0 * sigmoid(2.0 * x) - 1.0


@triton.jit
def mish(x):
    """x tanh(log(1 + exp(x))): with n = e^x (e^x + 2) it is x n / (n + 2)."""
    e = tl.exp(tl.where(x > 20.0, 20.0, x))
    n = e * (e + 2.0)
    return tl.where(x > 20.0, x, x * (n / (n + 2.0)))


@triton.jit
def softplus(x, BETA: tl.constexpr, THRESHOLD: tl.constexpr):
    scaled = x * BETA
    return tl.where(scaled > THRESHOLD, x, log1p(tl.exp(tl.where(scaled > THRESHOLD, 0.0, scaled))) / BETA)


@triton.jit
def elu(x, ALPHA: tl.constexpr, SCALE: tl.constexpr, INPUT_SCALE: tl.constexpr, PRECISE: tl.constexpr):
    """x SCALE for positive x, (exp(x INPUT_SCALE) - 1) ALPHA SCALE for others."""
    scaled = tl.where(x > 0, 0.0, x * INPUT_SCALE)
    if PRECISE:
        negative = expm1(scaled)
    else:
        negative = tl.exp(scaled) - 1.0
    return tl.where(x > 0, x * SCALE, negative * (ALPHA * SCALE))


@triton.jit
def hardsigmoid(x):
    return smaller(larger(x + 3.0, 0.0), 6.0) * (1.0 / 6.0)


@triton.jit
def round_to_even(x):
    """To the nearest integer, halves to the even one: adding 2**23 (2**52) leaves no place for a fraction."""
    a = tl.abs(x)
    if x.dtype == tl.float64:
        r = tl.where(a < 4503599627370496.0, (a + 4503599627370496.0) - 4503599627370496.0, a)
    else:
        r = tl.where(a < 8388608.0, (a + 8388608.0) - 8388608.0, a)
    return tl.where(x < 0, -r, r)


@triton.jit
def quantize(x, ZERO_POINT, LOW, HIGH):
    """x, in units of the scale, as an integer within bounds; still a float."""
    return tl.minimum(tl.maximum(round_to_even(x) + ZERO_POINT, LOW), HIGH)


@triton.jit
def truncate(x):
    return tl.where(x < 0, tl.ceil(x), tl.floor(x))


@triton.jit
def floor_divide(x, y):
    """Integers, towards minus infinity; ``//`` rounds towards zero."""
    q = x // y
    r = x % y
    return tl.where((r != 0) & ((r < 0) != (y < 0)), q - 1, q)


@triton.jit
def remainder(x, y):
    """Integers, with the sign of y; ``%`` has that of x."""
    r = x % y
    return tl.where((r != 0) & ((r < 0) != (y < 0)), r + y, r)
