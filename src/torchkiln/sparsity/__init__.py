"""sparsity: 2:4 pruning of a model's weights by magnitude, masks that hold while it is trained, and what weights have the pattern.

2:4: of every four weights that follow each other along the input dimension at most two are not zero. GPUs of compute capability 8.0 and more multiply
such weights at up to twice the rate. Source: Mishra et al., "Accelerating Sparse Deep Neural Networks", arXiv:2104.08378.
"""
