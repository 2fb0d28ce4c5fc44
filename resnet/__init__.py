"""Deep residual learning in JAX: networks, data, training, tools."""
