"""Runs that begin with the weights of another: the config's `init_from`."""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

from resnet import weights
from resnet.data.host.warnings import DataWarnings
from resnet.errors import InputError
from resnet.evaluation.evaluate import describe, evaluate
from resnet.run import run as run_lib
from resnet.run.checkpoint import Checkpoints
from resnet.run.initialize import evaluate_checkpoint, open_weights
from resnet.training.step import jit_steps
from tests import runs

NUM_STEPS = 2
SMALL = {
  'data__image_size': 8,
  'data__eval_resize': 8,
  'num_epochs': NUM_STEPS / 8,
  'save_every_steps': 1,
}
# Of no data set, as shares of 255.
PREPROCESSING = weights.Preprocessing(
  mean=(0.1, 0.2, 0.3),
  std=(0.4, 0.5, 0.6),
  image_size=8,
  crop_share=1.0,
  interpolation='bilinear',
)


def resolve(**changes):
  return runs.resolve(**{**SMALL, **changes})


@pytest.fixture(scope='module')
def first(tmp_path_factory):
  """A finished run: its folder, its state."""
  workdir = str(tmp_path_factory.mktemp('first'))
  run = resolve()
  run_lib.train(run, workdir, start_time=0.0)
  checkpoints = Checkpoints(workdir)
  state = checkpoints.restore(checkpoints.best_step(), run.abstract_state())
  return workdir, jax.device_get(state)


@pytest.fixture(scope='module')
def file(first, tmp_path_factory):
  """Its weights as a file that names another mean and standard deviation."""
  path = str(tmp_path_factory.mktemp('file') / 'weights.safetensors')
  metadata = weights.Metadata(
    model='cifar_resnet8', preprocessing=PREPROCESSING
  )
  weights.save_weights(first[1].variables, path, metadata=metadata)
  return path


def assert_equal(actual, expected):
  jax.tree.map(np.testing.assert_array_equal, dict(actual), dict(expected))


def test_a_run_begins_with_the_weights_of_any_source(first, file):
  workdir, state = first
  metadata = weights.open_stored(workdir).metadata
  assert metadata.model == 'cifar_resnet8'
  assert metadata.preprocessing.image_size == 8
  fresh = resolve().create_state()
  for source in (workdir, file, f'{workdir}/checkpoints/{NUM_STEPS}'):
    initial, _ = open_weights(resolve(init_from=source))
    assert not initial.new_head
    new = initial.apply(fresh)
    # Placed as a fresh state is.
    for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(fresh), strict=True):
      assert a.sharding == b.sharding
      assert (a.shape, a.dtype) == (b.shape, b.dtype)
    assert_equal(new.params, state.params)
    assert_equal(new.batch_stats, state.batch_stats)
    assert int(new.step) == 0
    assert not any(np.any(x) for x in jax.tree.leaves(new.opt_state))


def test_the_head_is_new_for_another_number_of_classes(file, first, tmp_path):
  run = resolve(init_from=file, model__num_classes=12)
  initial, _ = open_weights(run)
  fresh = run.create_state()
  new = initial.apply(fresh)
  assert_equal(new.params['head'], fresh.params['head'])
  assert new.params['head']['kernel'].shape == (64, 12)
  assert_equal(new.params['stem_conv'], first[1].params['stem_conv'])
  assert 'the head is new' in initial.describe()
  with pytest.raises(InputError, match='no head for the classes of the data'):
    evaluate_checkpoint(run, str(tmp_path / 'nothing'), 'best')


def test_the_head_is_new_for_a_backbone(tmp_path):
  fields = {'model__shortcut': 'B'}
  fresh = resolve(**fields).create_state()
  state = weights.to_state_dict('cifar_resnet8', fresh.variables, shortcut='B')
  del state['fc.weight'], state['fc.bias']
  path = str(tmp_path / 'backbone.safetensors')
  safetensors.numpy.save_file(
    {f'backbone.{k}': np.array(2 * x) for k, x in state.items()}, path
  )
  initial, _ = open_weights(resolve(init_from=path, **fields))
  new = initial.apply(fresh)
  assert_equal(new.params['head'], fresh.params['head'])
  kernel = fresh.params['stem_conv']['kernel']
  assert_equal({0: new.params['stem_conv']['kernel']}, {0: 2 * kernel})
  assert 'the head is new' in initial.describe()


def test_a_mean_in_the_config_overrides_that_of_the_weights(file):
  given = {'data__mean': (1.0, 2.0, 3.0), 'data__std': (4.0, 5.0, 6.0)}
  _, run = open_weights(resolve(init_from=file, **given))
  assert run.task.mean == (1.0, 2.0, 3.0)


@pytest.mark.slow
def test_a_run_records_its_source_and_resumes_without_it(
  file, tmp_path, capsys
):
  source = tmp_path / 'weights.safetensors'
  source.write_bytes(pathlib.Path(file).read_bytes())
  workdir = str(tmp_path / 'run')
  run = resolve(init_from=str(source))
  whole = run_lib.train(run, workdir, start_time=0.0)
  assert whole.step == NUM_STEPS
  assert f'Weights from {source}' in capsys.readouterr().out
  saved = json.loads((pathlib.Path(workdir) / 'config.json').read_text())
  assert saved['config']['init_from'] == str(source)
  assert saved['derived']['mean'] == pytest.approx([25.5, 51.0, 76.5])
  source.unlink()
  assert run_lib.train(run, workdir, start_time=0.0).was_complete
  # One step back: the run resumes from the checkpoint, not from the weights.
  shutil.rmtree(pathlib.Path(workdir) / 'checkpoints' / str(NUM_STEPS))
  capsys.readouterr()
  resumed = run_lib.train(run, workdir, start_time=0.0)
  out = capsys.readouterr().out
  assert 'Continuing' in out
  assert 'Weights from' not in out
  assert resumed.metrics == whole.metrics


def test_init_from_is_evaluated_without_a_run(file, first, tmp_path, capsys):
  nothing = tmp_path / 'nothing'
  assert evaluate_checkpoint(resolve(init_from=file), str(nothing), 'best') == 0
  out = capsys.readouterr().out
  assert not nothing.exists()
  run = resolve(
    data__mean=tuple(255 * x for x in PREPROCESSING.mean),
    data__std=tuple(255 * x for x in PREPROCESSING.std),
  )
  steps = jit_steps(run.task, run.sharding)
  expected = evaluate(run, steps, first[1], DataWarnings())
  assert describe(0, expected) in out


def test_evaluation_refuses_weights_that_name_other_classes(first, tmp_path):
  path = str(tmp_path / 'weights.safetensors')
  run = resolve(init_from=path)
  ours = tuple(map(str, range(run.task.model.num_classes)))
  metadata = weights.Metadata(
    model='cifar_resnet8', class_names=(*ours[:2], 'owl', *ours[3:])
  )
  weights.save_weights(first[1].variables, path, metadata=metadata)
  source = dataclasses.replace(run.train_reader.source, class_names=ours)
  reader = dataclasses.replace(run.train_reader, source=source)
  run = dataclasses.replace(run, train_reader=reader)
  with pytest.raises(InputError, match='no head for the classes of the data'):
    evaluate_checkpoint(run, str(tmp_path / 'nothing'), 'best')
  initial, _ = open_weights(run)
  assert initial.new_head


def test_weights_that_do_not_fit_are_refused_before_anything_is_written(
  file, first, tmp_path
):
  gray = tmp_path / 'gray.safetensors'
  variables = jax.tree.map(np.asarray, first[1].variables)
  stem = {'kernel': variables['params']['stem_conv']['kernel'][:, :, :1]}
  params = {**variables['params'], 'stem_conv': stem}
  weights.save_weights({**variables, 'params': params}, str(gray))
  workdir = tmp_path / 'run'
  for changes, message in (
    ({'model__name': 'cifar_resnet20'}, 'weights of cifar_resnet8, not of'),
    ({'init_from': str(gray)}, r'stem_conv/kernel .* images with 3 channels'),
  ):
    run = resolve(**{'init_from': file, **changes})
    with pytest.raises(InputError, match=message):
      run_lib.train(run, str(workdir), start_time=0.0)
    assert not workdir.exists()
