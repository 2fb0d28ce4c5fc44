"""Exports networks for other programs; `formats` has a module per format."""
