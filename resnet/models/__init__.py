"""Residual networks by name."""

from resnet.models.registry import (
  abstract_variables,
  create_model,
  list_models,
)

__all__ = ['abstract_variables', 'create_model', 'list_models']
