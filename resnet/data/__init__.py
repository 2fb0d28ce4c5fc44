"""Data: random-access sources, NumPy transforms, the loader."""
