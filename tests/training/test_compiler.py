"""The options of XLA."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet.training import compiler
from resnet.training.state import create_state
from tests.runs import tiny


def test_flags_of_the_user_take_precedence(monkeypatch):
  name = 'xla_gpu_enable_latency_hiding_scheduler'
  assert compiler.options('gpu') == {name: True}
  monkeypatch.setenv('XLA_FLAGS', f'--other=1 --{name}=false')
  assert compiler.options('gpu') == {}


def test_experimental_options_unknown_to_xla_are_left_out(monkeypatch):
  known = dict(compiler.XLA_OPTIONS['cpu'])
  assert compiler.options('cpu') == known
  options = {'xla_cpu_experimental_nonsense': 'A', **known}
  monkeypatch.setitem(compiler.XLA_OPTIONS, 'cpu', options)
  assert compiler.options('cpu') == known
  name = next(x for x in known if 'experimental' in x)
  monkeypatch.setitem(compiler.XLA_OPTIONS, 'cpu', {name: 'NONSENSE'})
  assert compiler.options('cpu') == {}


def test_xla_knows_the_options():
  for options in (
    *compiler.XLA_OPTIONS.values(),
    *compiler.XLA_OPTIONS_ONCE.values(),
  ):
    double = jax.jit(lambda x: 2 * x, compiler_options=dict(options))
    assert double(jnp.float32(3)) == 6
  wrong = jax.jit(lambda x: 2 * x, compiler_options={'xla_gpu_nonsense': True})
  with pytest.raises(jax.errors.JaxRuntimeError, match='xla_gpu_nonsense'):
    wrong(jnp.float32(3))


def test_a_program_that_runs_once_is_not_optimized(monkeypatch):
  always, level = compiler.options('cpu'), 'xla_backend_optimization_level'
  monkeypatch.setenv('XLA_FLAGS', '')
  assert compiler.options('cpu', runs_once=True) == {**always, level: 1}
  assert compiler.options('cpu') == always
  assert compiler.options('tpu', runs_once=True) == {}
  monkeypatch.setenv('XLA_FLAGS', f'--{level}=3')
  assert compiler.options('cpu', runs_once=True) == always


def test_the_initial_state_equals_that_of_an_optimized_program(monkeypatch):
  monkeypatch.setenv('XLA_FLAGS', '')
  run = tiny()
  create = functools.partial(
    create_state, task=run.task, image_shape=run.image_shape
  )
  options = {'xla_backend_optimization_level': 3}
  state = jax.jit(create, compiler_options=options)(
    jax.random.key(run.task.seed)
  )
  jax.tree.map(np.testing.assert_array_equal, run.create_state(), state)
