"""Sliding window inference: a large image through a model of small windows, which overlap and are blended."""
