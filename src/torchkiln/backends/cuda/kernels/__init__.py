"""Triton kernels. Every argument but the pointers is a constexpr, strides included: a kernel is compiled for one problem.

Each kernel has a ``PDL`` constexpr: where it is True, ``gdc_wait()`` comes before the first read of what another kernel wrote, and
``gdc_launch_dependents()`` lets the next kernel start (programmatic dependent launch, compute capability 9.0).
"""
