"""Deep residual learning in JAX: networks, data, training, tools.

Imports go one way: models, data and training do not import `run`; `experiment`
creates them from a config; `run` trains in a folder; `tools` are the commands.
"""
