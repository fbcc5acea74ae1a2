"""pointwise: kernels generated for groups of pointwise nodes of an FX graph, and the copies that pad and roll.

``regions`` finds the groups; ``rules`` (with ``arithmetic``, ``activations`` and ``logic``) says how each operator is written, ``expressions``
writes a group; ``layout`` orders the dimensions and ``generate`` makes the kernel, which calls ``functions``. ``copies`` is apart: elements moved by
index arithmetic.
"""
