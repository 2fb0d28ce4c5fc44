"""The training step and its parts: pure and jitted, without file access.

`task` holds the inputs of a step that are not arrays, `state` the arrays that
a step changes, `step` the update, and `sharding` the placement on devices.
"""
