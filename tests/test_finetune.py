"""Fine-tuning: whose weights, what is frozen, who learns how fast."""

import re

from flax import traverse_util
import jax
import numpy as np
import pytest

from configs import fake, finetune
from resnet import experiment
from resnet.errors import InputError
from resnet.models import weights
from resnet.training.initialize import open_weights
from resnet.training.step import jit_steps
from tests.networks import make_variables

STAGE1 = re.compile(r'(params|batch_stats)/(stem|stage1)')


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  """Weights of seven classes, made with images of 24 pixels."""
  _, variables = make_variables('cifar_resnet8', size=24, num_classes=7)
  path = str(tmp_path_factory.mktemp('finetune') / 'source.safetensors')
  metadata = weights.Metadata(
    model='cifar_resnet8',
    preprocessing=weights.Preprocessing(
      mean=(0.25, 0.5, 0.75),
      std=(0.5, 0.25, 0.125),
      image_size=24,
      crop_share=0.75,
      interpolation='bilinear',
    ),
  )
  weights.save_weights(variables, path, metadata=metadata)
  return path


def first_steps(source, num_steps=2, **fields):
  """Returns the variables before and after some updates, by path."""
  config = finetune.get_config(f'{source},fake')
  config.batch_size = 16
  for name, value in fields.items():
    config.update_from_flattened_dict({name.replace('__', '.'): value})
  initial, run = open_weights(experiment.resolve(config))
  state = initial.apply(run.create_state())
  before = _flat(state)
  train = jit_steps(run.task, run.sharding).train
  for step in range(num_steps):
    batch = run.train_reader(step)
    state, _ = train(state, jax.device_put(batch, run.sharding.batch))
  return before, _flat(state)


def _flat(state):
  flat = traverse_util.flatten_dict(state.variables, sep='/')
  return {path: np.array(leaf) for path, leaf in flat.items()}


def changed(before, after):
  return {path for path in before if np.any(before[path] != after[path])}


def test_network_and_images_are_those_of_the_weights(source):
  config = finetune.get_config(f'{source},fake')
  _, run = open_weights(experiment.resolve(config))
  assert config.model.name == 'cifar_resnet8'
  assert run.image_shape == (24, 24, 3)
  assert run.eval_reader.transform.resize_size == 32
  assert run.task.mean == pytest.approx((63.75, 127.5, 191.25))


def test_everything_learns_unless_told_otherwise(source):
  before, after = first_steps(source)
  assert changed(before, after) == set(before)
  assert before['params/head/bias'].shape == (10,)
  read = weights.load_weights(source, 'cifar_resnet8')
  kernel = read['params']['stage3_block1']['conv1']['kernel']
  np.testing.assert_array_equal(
    before['params/stage3_block1/conv1/kernel'], kernel
  )


def test_frozen_stages_stay_to_the_last_bit(source):
  before, after = first_steps(source, model__frozen_stages=1)
  frozen = {path for path in before if STAGE1.match(path)}
  assert len(frozen) == 15
  assert changed(before, after) == set(before) - frozen


def test_frozen_batch_norms_keep_their_statistics(source):
  before, after = first_steps(source, model__frozen_bn=True)
  assert changed(before, after) == {p for p in before if p.startswith('params')}


def test_the_backbone_learns_at_its_share_of_the_rate(source):
  steps = [
    first_steps(source, 1, optimizer__backbone_multiplier=share)
    for share in (1.0, 0.25)
  ]
  (before, whole), (_, quarter) = steps
  for path, start in before.items():
    if path.startswith('params'):
      share = 1.0 if 'head' in path else 0.25
      np.testing.assert_allclose(
        quarter[path] - start,
        share * (whole[path] - start),
        rtol=0.01,
        atol=1e-6,
      )
  head = 'params/head/kernel'
  assert np.abs(whole[head] - before[head]).max() > 1e-4


@pytest.mark.parametrize('argument', ['', 'source', 'source,', ',fake'])
def test_both_parts_must_be_given(argument):
  with pytest.raises(InputError, match='SOURCE,DATASET'):
    finetune.get_config(argument)


def test_a_source_that_is_none_is_named():
  with pytest.raises(InputError, match='no weights at'):
    finetune.get_config('/no/where,digits')


def test_no_field_has_changed_other_runs():
  """An optimizer state of before has as many entries as one of today."""
  state = experiment.resolve(fake.get_config()).abstract_state()
  assert len(state.opt_state) == 3
