"""Fine-tuning: the network of the weights, and what is frozen."""

import re

from flax import traverse_util
import jax
import numpy as np
import pytest

from configs import finetune
from resnet import config as config_lib
from resnet import experiment, weights
from resnet.errors import InputError
from resnet.run.initialize import open_weights
from resnet.training.step import jit_steps
from tests.networks import make_variables


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  """Weights of seven classes, made with images of 12 pixels."""
  _, variables = make_variables('cifar_resnet8', size=12, num_classes=7)
  path = str(tmp_path_factory.mktemp('finetune') / 'source.safetensors')
  metadata = weights.Metadata(
    model='cifar_resnet8',
    preprocessing=weights.Preprocessing(
      mean=(0.25, 0.5, 0.75),
      std=(0.5, 0.25, 0.125),
      image_size=12,
      crop_share=0.75,
      interpolation='bilinear',
    ),
  )
  weights.save_weights(variables, path, metadata=metadata)
  return path


def open_run(source, **model):
  """Returns the weights, and a run on one device that begins with them."""
  config = finetune.get_config(f'{source},fake')
  config.batch_size = 16
  config.model.update(model)
  run = experiment.resolve(config, devices=jax.devices()[:1])
  return open_weights(run)


def train_once(source, **model):
  """Returns the paths of all variables, and of those that an update changes."""
  initial, run = open_run(source, **model)
  state = initial.apply(run.create_state())
  before = flatten(state)
  train = jit_steps(run.task, run.sharding).train
  after = flatten(train(state, run.train_reader(0))[0])
  changed = {p for p in before if np.any(before[p] != after[p])}
  return set(before), changed


def flatten(state):
  flat = traverse_util.flatten_dict(state.variables, sep='/')
  return {path: np.array(leaf) for path, leaf in flat.items()}


def test_network_and_images_follow_the_metadata_of_the_weights(source):
  _, run = open_run(source)
  assert run.config['model.name'] == 'cifar_resnet8'
  assert run.image_shape == (12, 12, 3)
  assert run.eval_reader.transform.resize_size == 16
  assert run.task.mean == pytest.approx((63.75, 127.5, 191.25))


def test_frozen_stages_keep_their_bits_and_all_others_learn(source):
  paths, changed = train_once(source, frozen_stages=1)
  is_frozen = re.compile(r'(params|batch_stats)/(stem|stage1)').match
  frozen = set(filter(is_frozen, paths))
  assert len(frozen) == 15
  assert changed == paths - frozen


def test_frozen_batch_norms_keep_their_statistics_and_all_weights_learn(source):
  paths, changed = train_once(source, frozen_bn=True)
  assert changed == {path for path in paths if path.startswith('params')}


def test_an_argument_without_weights_or_data_set_is_refused():
  for argument in ('source,', ',fake'):
    with pytest.raises(InputError, match='SOURCE,DATASET'):
      finetune.get_config(argument)
  with pytest.raises(InputError, match='no weights at'):
    finetune.get_config('/no/where,digits')


def test_the_default_workdir_has_no_special_characters():
  path = 'configs/finetune.py:../runs/photos,folder'
  assert config_lib.default_workdir(path) == 'runs/finetune_runs_photos_folder'


def test_a_folder_is_evaluated_on_val(source):
  config = finetune.get_config(f'{source},folder')
  assert config.data.eval_split == 'val'
