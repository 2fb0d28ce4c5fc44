"""Runs whose images are on the devices: the same batches, states and errors."""

import dataclasses
import functools
import json
import signal

import jax
import numpy as np
import pytest

from resnet.data.host import cache
from resnet.data.host.warnings import DataWarnings
from resnet.errors import InputError
from resnet.run import run as run_lib
from resnet.training.step import augment_batch, look_up
from tests import runs
from tests.programs import SMALL
from tests.runs import assert_close_runs, at_batch, with_broken_images

ON_DEVICE = {'data__augment_on': 'device'}
CACHED = {**ON_DEVICE, 'data__cache': 'device'}
FIELDS = {
  # 8 pixels until step 6, then 12, cropped from 12.
  'data__size_schedule': ((0.0, 8), (0.75, 12)),
  'data__image_size': 12,
  'data__eval_resize': 12,
  'data__crop': 'random_resized',
  'data__repeats': 2,
  'augment__mixup_alpha': 0.2,
  'augment__mix_group_size': 4,
  'model__bn_group_size': 4,
  'ema_decay': 0.9,
  'log_every_steps': 1,
  'save_every_steps': 3,
  'preemption_grace_seconds': 600.0,
  # So low that rounding errors do not grow.
  'schedule__learning_rate': 0.001,
}


def fill(run, read=lambda _: None):
  return run.cached(DataWarnings(run.train_reader.max_bad_images), read)


def read_all(run, name, num_steps=None):
  """Returns the batches of a split, and the number of images left out."""
  warnings = DataWarnings(run.train_reader.max_bad_images)
  loader = run.load(getattr(run, name), warnings, num_steps=num_steps)
  return list(loader), loader.num_left_out


def assert_same_batches(cached, plain):
  """Asserts bit-equal batches of both splits, spread over the devices alike."""
  for name, num_steps in (('train_reader', 12), ('eval_reader', None)):
    batches, num_left_out = read_all(cached, name, num_steps)
    expected, expected_left_out = read_all(plain, name, num_steps)
    assert num_left_out == expected_left_out
    for ours, theirs in zip(batches, expected, strict=True):
      assert ours.keys() == {'index', 'cache'}
      found = jax.jit(look_up)(ours)
      assert found.keys() == theirs.keys()
      for key, rows in theirs.items():
        assert found[key].dtype == rows.dtype
        np.testing.assert_array_equal(found[key], rows)
        sharding = ours['index'].sharding
        assert sharding.is_equivalent_to(rows.sharding, 1)


@pytest.mark.parametrize('num_devices', [1, 4])
def test_batches_are_bit_equal(num_devices):
  plain = runs.tiny(num_devices, data__repeats=2, **ON_DEVICE)
  counts = []
  cached = fill(
    runs.tiny(num_devices, data__repeats=2, **CACHED), counts.append
  )
  assert sum(counts) == 512 + 100
  assert_same_batches(cached, plain)
  for reader in cached.readers:
    for values in jax.tree.leaves(reader.cache):
      assert values.sharding.is_fully_replicated
  (batch, *_), _ = read_all(cached, 'train_reader', 1)
  augmented = [
    jax.jit(
      functools.partial(augment_batch, task=plain.task, sharding=plain.sharding)
    )(x, np.int32(0))
    for x in (batch, runs.batch_of(plain))
  ]
  jax.tree.map(np.testing.assert_array_equal, *augmented)


def test_broken_images_are_replaced_as_without_a_cache():
  run = runs.tiny(4, data__on_bad_image='skip', **ON_DEVICE)
  run = dataclasses.replace(
    run,
    train_reader=with_broken_images(run.train_reader, 9, 77, 78, 511),
    eval_reader=with_broken_images(run.eval_reader, 70),
  )
  assert_same_batches(fill(run), run)
  few = dataclasses.replace(run.train_reader, max_bad_images=3)
  with pytest.raises(InputError, match='4 broken images were found, more than'):
    fill(dataclasses.replace(run, train_reader=few))


def train(workdir, **changes):
  run = runs.tiny(4, **{**FIELDS, **changes})
  return run_lib.train(run, str(workdir), start_time=0.0)


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
  """The workdir of a run without a cache."""
  workdir = tmp_path_factory.mktemp('plain')
  train(workdir, **ON_DEVICE)
  return workdir


def test_a_run_and_a_resumed_run_give_the_same_losses(
  plain, tmp_path, monkeypatch, capsys
):
  """The cache is used until step 5, left out until 8, and used again.

  No signal comes while a program is compiled, which would end the process.
  """
  for batch, step, fields in ((5, 5, CACHED), (3, 8, ON_DEVICE)):
    with monkeypatch.context() as patch:
      at_batch(patch, batch)
      outcome = train(tmp_path, **fields)
    assert (outcome.signal, outcome.step) == (signal.SIGTERM, step)
  capsys.readouterr()
  train(tmp_path, **CACHED)
  assert '612 images (0.3 MB) are on each device' in capsys.readouterr().out
  assert_close_runs(tmp_path, plain, rtol=1e-6)


def test_the_cache_stays_on_its_device(tool):
  """A step on four devices has the same collectives without a cache."""
  args = (*SMALL, '--topology=cpu:4', '--config.data.augment_on=device')
  args += ('--config.model.bn_group_size=4', '--json')
  plain, cached = (
    json.loads(tool('aot', *args, *more).stdout)
    for more in ((), ('--config.data.cache=device',))
  )
  for subject in ('train', 'eval'):
    ours, theirs = cached[subject], plain[subject]
    assert ours['collectives'] == theirs['collectives']
    assert {x['kind'] for x in ours['collectives']} == {'all-reduce'}
  more = cached['train']['argument_bytes'] - plain['train']['argument_bytes']
  size = 8 * 8 * 3
  assert more == pytest.approx(512 * (size + 4) - 16 * (size + 1), abs=200)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'data__augment_on': 'host'}, 'type --config.data.augment_on=device'),
    ({'data__cache': 'host'}, "data.cache='host' is not one of device or None"),
  ],
)
def test_other_settings_are_refused(changes, message):
  with pytest.raises(InputError, match=message):
    runs.tiny(1, **{**CACHED, **changes})


class _Device:
  def __init__(self, **stats):
    self.stats = stats

  def memory_stats(self):
    return self.stats or None


class _Sharding:
  def __init__(self, *devices):
    self.addressable_devices = devices


def test_memory_is_checked_before_anything_is_read(tmp_path, monkeypatch):
  needed = (512 + 100) * 12 * 12 * 3
  monkeypatch.setattr(cache, 'available_bytes', lambda: 8.0 * needed - 1)
  with pytest.raises(InputError) as error:
    train(tmp_path / 'run', **CACHED)
  assert not (tmp_path / 'run').exists()
  assert str(error.value).startswith(
    "data.cache='device' needs 0.000 GB on each device, but may take 50% of its"
  )
  assert '--config.data.cache=None' in str(error.value)
  # Four virtual devices share the memory of the host.
  four = _Sharding(*[_Device()] * 4)
  cache.check_memory(needed - 1, four)
  with pytest.raises(InputError):
    cache.check_memory(needed, four)
  # The fullest device counts.
  used, free = (_Device(bytes_limit=9, bytes_in_use=n) for n in (5, 0))
  cache.check_memory(2, _Sharding(free, used))
  with pytest.raises(InputError):
    cache.check_memory(3, _Sharding(free, used))
