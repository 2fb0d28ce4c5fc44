"""From stored images to training batches.

`sources` reads records by index, `host` decodes and crops them in NumPy,
`augment` does the rest in the jitted step, and `prepare` writes ArrayRecord
files. A batch depends on the seed and the step alone, so a run can resume with
another number of workers, processes or devices.
"""
