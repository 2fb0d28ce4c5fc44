"""Deep residual learning in JAX: networks, data, training, tools.

Imports go one way: models, data and training know no run; `experiment` makes
them from a config; `run` trains in a folder; `tools` are the commands.
"""
