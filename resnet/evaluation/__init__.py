"""Evaluation: every image once, averaged over views, with calibration."""
