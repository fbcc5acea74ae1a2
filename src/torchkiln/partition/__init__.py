"""Partitioning: which part of the lowered graph runs where."""
