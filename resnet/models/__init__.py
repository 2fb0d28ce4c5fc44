"""Residual networks by name."""

from resnet.models.registry import create_model, list_models

__all__ = ['create_model', 'list_models']
