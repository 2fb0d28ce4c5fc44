"""The training step and its parts: pure, jitted, without files or runs.

`task` is what a step needs besides arrays, `state` the arrays that it changes,
`step` the update itself, `sharding` where the arrays lie.
"""
