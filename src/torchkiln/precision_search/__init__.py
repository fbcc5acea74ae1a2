"""Precision search: which layers may be narrow so that the engine is fast and stays within a budget of error; and which ones break it (bisect)."""
