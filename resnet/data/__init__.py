"""The input pipeline: from stored images to training batches.

`sources` reads records by index, `host` decodes and crops them in NumPy,
`augment` augments them in the jitted step, and `prepare` writes ArrayRecord
files. A batch depends only on the seed and the step, so a run can resume with
a different number of workers, processes or devices.
"""
