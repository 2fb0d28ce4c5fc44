"""Figures of runs and evaluations; the only importers of matplotlib."""
