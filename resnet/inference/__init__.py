"""Inference: predictions, features and class activation maps.

The preprocessing is stored with the weights, so prediction, serving and export
see the same pixels as evaluation.
"""
