"""Exact evaluation, averages over views, calibration and precise BN."""
