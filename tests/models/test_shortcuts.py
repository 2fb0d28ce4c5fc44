"""Shortcut options against their definitions."""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet.models import layers
from resnet.models.shortcuts import SHORTCUTS

_OPTIONS = [name for name, shortcut in SHORTCUTS.items() if shortcut]


class _Shortcut(nn.Module):
  option: str
  filters: int
  strides: int
  is_preact: bool = False

  @nn.compact
  def __call__(self, x, activated):
    norm = functools.partial(layers.BatchNorm, use_running_average=True)
    return SHORTCUTS[self.option](
      x,
      activated,
      self.filters,
      self.strides,
      conv=layers.conv,
      norm=None if self.is_preact else norm,
    )


def _images(seed, height=6):
  values = np.random.default_rng(seed).standard_normal((2, height, 4, 3))
  return jnp.asarray(values, jnp.float32)


def _apply(x, activated, **fields):
  """Returns the output and the parameters."""
  module = _Shortcut(**fields)
  y, variables = module.init_with_output(jax.random.key(0), x, activated)
  return np.asarray(y), variables.get('params', {})


def test_a_takes_every_second_pixel_and_appends_zeros():
  x = _images(1)
  y, params = _apply(x, x, option='A', filters=8, strides=2)
  assert not params
  assert y.shape == (2, 3, 2, 8)
  np.testing.assert_array_equal(y[..., :3], np.asarray(x)[:, ::2, ::2])
  np.testing.assert_array_equal(y[..., 3:], 0.0)


@pytest.mark.parametrize('option', ['A', 'B', 'D'])
def test_is_the_identity_where_the_shape_stays(option):
  # Also in v2, where the activated input is another array.
  y, params = _apply(
    _images(1), _images(2), option=option, filters=3, strides=1
  )
  assert not params
  np.testing.assert_array_equal(y, _images(1))


def _project(x, kernel):
  return np.asarray(x) @ np.asarray(kernel)[0, 0]


@pytest.mark.parametrize('strides', [1, 2])
@pytest.mark.parametrize('option', ['B', 'C'])
def test_a_projection_sees_every_second_pixel(option, strides):
  x = _images(1)
  y, params = _apply(x, x, option=option, filters=8, strides=strides)
  assert set(params) == {'shortcut_conv', 'shortcut_bn'}
  seen = np.asarray(x)[:, ::strides, ::strides]
  expected = _project(seen, params['shortcut_conv']['kernel'])
  np.testing.assert_allclose(
    y, expected / np.sqrt(1 + 1e-5), rtol=1e-4, atol=1e-6
  )


def test_c_projects_where_the_shape_stays():
  _, params = _apply(_images(1), _images(1), option='C', filters=3, strides=1)
  assert set(params) == {'shortcut_conv', 'shortcut_bn'}


@pytest.mark.parametrize('height', [6, 5])
def test_d_projects_means_of_four_pixels_and_of_fewer_at_an_odd_border(height):
  x = _images(1, height)
  y, params = _apply(x, x, option='D', filters=8, strides=2)
  rows = [np.asarray(x)[:, i : i + 2] for i in range(0, height, 2)]
  pooled = np.stack(
    [row.reshape(2, len(row[0]), 2, 2, 3).mean(axis=(1, 3)) for row in rows],
    axis=1,
  )
  expected = _project(pooled, params['shortcut_conv']['kernel'])
  assert y.shape == (2, 3, 2, 8)
  np.testing.assert_allclose(
    y, expected / np.sqrt(1 + 1e-5), rtol=1e-4, atol=1e-6
  )


@pytest.mark.parametrize('option', _OPTIONS)
def test_in_v2_what_changes_the_shape_is_activated_and_has_no_norm(option):
  x, activated = _images(1), _images(2)
  fields = {'option': option, 'filters': 8, 'strides': 2, 'is_preact': True}
  y, params = _apply(x, activated, **fields)
  assert set(params) <= {'shortcut_conv'}
  same, _ = _apply(activated, activated, **fields)
  np.testing.assert_array_equal(y, same)
  other, _ = _apply(x, x, **fields)
  assert np.max(np.abs(y - other)) > 0.1
