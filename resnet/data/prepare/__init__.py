"""Writes data sets as ArrayRecord shards in the layout of TFDS."""
