"""Figures of runs and evaluations; `figures` alone imports matplotlib."""
