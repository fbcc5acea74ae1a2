"""Tactics: each file holds the ways to run some fused ops, listed in its ``TACTICS``; registry.py finds them by op."""
