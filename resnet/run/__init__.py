"""One training run in its folder: start, resume, log, save, stop.

A run survives a kill at any moment: metrics are appended line by line,
checkpoints have checksums, and the same command resumes from the newest intact
one and gives the same bits as an uninterrupted run.
"""
