"""Figures of runs and evaluations; only `figures` imports matplotlib."""
