"""Race: build each candidate, check it, time it on the real shapes, and keep the fastest that passes."""
