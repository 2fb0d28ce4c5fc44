"""Networks for other programs: one module per format in `formats`."""
