"""Runs that begin with the weights of another: the config's `init_from`."""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from configs import fake
from resnet import experiment
from resnet.data.notes import Notes
from resnet.errors import InputError
from resnet.models import weights
from resnet.training import evaluate
from resnet.training import run as run_lib
from resnet.training.checkpoint import Checkpoints
from resnet.training.initialize import open_weights

NUM_STEPS = 16
# Of no data set, as shares of 255.
PREPROCESSING = weights.Preprocessing(
  mean=(0.1, 0.2, 0.3),
  std=(0.4, 0.5, 0.6),
  image_size=8,
  crop_share=1.0,
  interpolation='bilinear',
)


def resolve(**changes):
  config = fake.get_config()
  config.data.image_size = config.data.eval_resize = 8
  config.update_from_flattened_dict(
    {name.replace('__', '.'): value for name, value in changes.items()}
  )
  return experiment.resolve(config)


@pytest.fixture(scope='module')
def first(tmp_path_factory, data_dir):
  """A finished run: its folder, its state."""
  del data_dir
  workdir = str(tmp_path_factory.mktemp('first'))
  run = resolve()
  run_lib.train(run, workdir, start_time=0.0)
  checkpoints = Checkpoints(workdir)
  state = checkpoints.restore(checkpoints.best_step(), run.abstract_state())
  return workdir, jax.device_get(state)


@pytest.fixture(scope='module')
def file(first, tmp_path_factory):
  """Its weights as a file that says another mean and standard deviation."""
  path = str(tmp_path_factory.mktemp('file') / 'weights.safetensors')
  metadata = weights.Metadata(
    model='cifar_resnet8', preprocessing=PREPROCESSING
  )
  weights.save_weights(first[1].variables, path, metadata=metadata)
  return path


def begin(**changes):
  """Returns the first state of a run, and the experiment."""
  initial, run = open_weights(resolve(**changes))
  return jax.device_get(initial.apply(run.create_state())), run, initial


def assert_equal(actual, expected):
  jax.tree.map(np.testing.assert_array_equal, dict(actual), dict(expected))


@pytest.mark.parametrize('kind', ['workdir', 'file', 'checkpoint'])
def test_a_run_begins_with_the_weights(kind, first, file):
  workdir, state = first
  sources = {
    'workdir': workdir,
    'file': file,
    'checkpoint': f'{workdir}/checkpoints/{int(state.step)}',
  }
  new, _, initial = begin(init_from=sources[kind])
  assert_equal(new.params, state.params)
  assert_equal(new.batch_stats, state.batch_stats)
  assert int(new.step) == 0
  assert not any(np.any(x) for x in jax.tree.leaves(new.opt_state))
  assert not initial.new_head


def test_a_state_is_placed_as_a_fresh_one(file):
  run = resolve(init_from=file)
  initial, run = open_weights(run)
  fresh = run.create_state()
  new = initial.apply(fresh)
  for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(fresh), strict=True):
    assert a.sharding == b.sharding
    assert (a.shape, a.dtype) == (b.shape, b.dtype)


def test_the_head_is_new_for_another_number_of_classes(file, first):
  changes = {'init_from': file, 'model__num_classes': 12}
  new, run, initial = begin(**changes)
  fresh = jax.device_get(run.create_state())
  assert_equal(new.params['head'], fresh.params['head'])
  assert new.params['head']['kernel'].shape == (64, 12)
  assert_equal(new.params['stem_conv'], first[1].params['stem_conv'])
  assert 'the head is new' in initial.describe()


def test_images_are_normalised_as_the_weights_are_used_to(file):
  _, run, _ = begin(init_from=file)
  assert run.task.mean == pytest.approx((25.5, 51.0, 76.5))
  assert run.task.std == pytest.approx((102.0, 127.5, 153.0))
  # The config has the last word.
  given = {'data__mean': (1.0, 2.0, 3.0), 'data__std': (4.0, 5.0, 6.0)}
  _, run, _ = begin(init_from=file, **given)
  assert (run.task.mean, run.task.std) == ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))


def test_a_run_says_and_keeps_where_it_begins(file, tmp_path, capsys):
  workdir = str(tmp_path / 'run')
  changes = {'init_from': file, 'schedule__learning_rate': 1e-6}
  outcome = run_lib.train(resolve(**changes), workdir, start_time=0.0)
  assert f'Weights from {file}' in capsys.readouterr().out
  saved = json.loads((pathlib.Path(workdir) / 'config.json').read_text())
  assert saved['config']['init_from'] == file
  assert saved['derived']['mean'] == pytest.approx([25.5, 51.0, 76.5])
  assert outcome.step == NUM_STEPS


def test_a_checkpoint_in_the_workdir_goes_before_the_weights(
  file, tmp_path, capsys
):
  source = tmp_path / 'weights.safetensors'
  source.write_bytes(pathlib.Path(file).read_bytes())
  workdir = str(tmp_path / 'run')
  changes = {'init_from': str(source)}
  whole = run_lib.train(resolve(**changes), workdir, start_time=0.0)
  newest = pathlib.Path(workdir) / 'checkpoints' / str(NUM_STEPS)
  source.unlink()
  again = run_lib.train(resolve(**changes), workdir, start_time=0.0)
  assert again.was_complete
  # One step back: the run goes on from the checkpoint, not from the weights.
  shutil.rmtree(newest)
  capsys.readouterr()
  resumed = run_lib.train(resolve(**changes), workdir, start_time=0.0)
  out = capsys.readouterr().out
  assert 'Continuing' in out
  assert 'Weights from' not in out
  assert resumed.metrics == whole.metrics


def test_weights_are_evaluated_where_there_is_no_run(
  file, first, tmp_path, capsys
):
  _, state = first
  statistics = {
    'data__mean': tuple(255 * x for x in PREPROCESSING.mean),
    'data__std': tuple(255 * x for x in PREPROCESSING.std),
  }
  nothing = tmp_path / 'nothing'
  assert evaluate.run(resolve(init_from=file), str(nothing), 'best') == 0
  out = capsys.readouterr().out
  assert not nothing.exists()
  run = resolve(**statistics)
  steps = evaluate.jit_steps(run.task, run.sharding)
  expected = evaluate.evaluate(run, steps, state, Notes())
  assert evaluate.describe(0, expected) in out
  with pytest.raises(InputError, match='nothing to evaluate'):
    evaluate.run(
      resolve(init_from=file, model__num_classes=12), str(nothing), 'best'
    )


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'init_from': '/no/where'}, "no weights at '/no/where'"),
    ({'model__name': 'cifar_resnet20'}, 'weights of cifar_resnet8, not of'),
    ({'model__shortcut': 'C'}, "with shortcut 'A', not 'C'"),
  ],
)
def test_weights_that_do_not_fit_are_refused_before_anything_is_written(
  file, tmp_path, changes, message
):
  workdir = tmp_path / 'run'
  run = resolve(**{'init_from': file, **changes})
  with pytest.raises(InputError, match=message):
    run_lib.train(run, str(workdir), start_time=0.0)
  assert not workdir.exists()


def test_weights_for_images_of_other_channels_are_refused(first, tmp_path):
  path = str(tmp_path / 'weights.safetensors')
  variables = jax.tree.map(np.asarray, first[1].variables)
  kernel = variables['params']['stem_conv']['kernel']
  stem = {'stem_conv': {'kernel': kernel[:, :, :1]}}
  gray = {**variables, 'params': {**variables['params'], **stem}}
  weights.save_weights(gray, path)
  message = r'params/stem_conv/kernel .* images of 3 channels'
  with pytest.raises(InputError, match=message):
    open_weights(resolve(init_from=path))


def test_what_a_workdir_says_of_its_weights(first):
  workdir, _ = first
  run = resolve()
  metadata = weights.open_source(workdir).metadata
  assert metadata.model == 'cifar_resnet8'
  assert metadata.preprocessing.image_size == 8
  mean = [255 * value for value in metadata.preprocessing.mean]
  assert mean == pytest.approx(run.task.mean)
  named = dataclasses.replace(
    run.train_reader,
    source=dataclasses.replace(run.train_reader.source, class_names=('a', 'b')),
  )
  derived = dataclasses.replace(run, train_reader=named).derived()
  assert derived['class_names'] == ['a', 'b']
