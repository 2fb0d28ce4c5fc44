"""Trained networks in use: predictions, features, activation maps.

The preprocessing travels with the weights, so prediction, serving and export
see the pixels that were evaluated.
"""
