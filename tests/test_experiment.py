"""Every field of a config is read, and bad values are refused by name."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from configs import default
from resnet import config as config_lib
from resnet import experiment, fields
from resnet.config import flatten
from resnet.data import pipeline
from resnet.data.sources import registry
from resnet.errors import InputError
from resnet.fields import FIELDS
from tests.programs import ROOT
from tests.runs import fake_config, resolve

# Runs in which every field means something. Mean and standard deviation are
# given, because to measure them takes longer than all the rest.
GIVEN = {'data.mean': (128.0,) * 3, 'data.std': (64.0,) * 3}
MODERN = {
  **GIVEN,
  'ema_decay': 0.9,
  'model.shortcut': 'B',
  'data.crop': 'random_resized',
  'data.on_bad_image': 'skip',
  'augment.operations': ('randaugment', 'color_jitter', 'lighting', 'erasing'),
  'augment.mixup_alpha': 0.1,
  'augment.cutmix_alpha': 0.3,
  'optimizer.name': 'lamb',
  'optimizer.decay_rule': 'kernels',
  'schedule.name': 'polynomial',
  'schedule.warmup_epochs': 0.5,
  'schedule.warmup_learning_rate': 0.05,
  'schedule.decay_epochs': (),
  'schedule.cooldown_epochs': 0.5,
  'schedule.final_learning_rate': 0.01,
  'loss.name': 'binary_cross_entropy',
  'loss.label_smoothing': 0.4,
  'loss.target_threshold': 0.2,
}
LARS = {**GIVEN, 'optimizer.name': 'lars', 'optimizer.decay_rule': 'kernels'}
SOURCE_OF_RUN = ''.join(
  path.read_text()
  for path in [
    *(ROOT / 'resnet/run').glob('*.py'),
    ROOT / 'resnet/experiment.py',
  ]
)
RUNS = {'default': GIVEN, 'modern': MODERN, 'lars': LARS}

# Other values of texts, of fields that are None in all these runs, and of those
# that cannot be half or twice as large.
OTHER_VALUES = {
  'init_from': 'weights.safetensors',
  'model.name': 'cifar_resnet20',
  'model.num_classes': 11,
  'model.dtype': 'bfloat16',
  'model.zero_init_last_scale': True,
  'model.shortcut': 'C',
  'model.bn_group_size': 8,
  'model.bn_momentum': 0.5,
  'model.frozen_stages': 1,
  'model.frozen_bn': True,
  'model.drop_path': 0.1,
  'model.dropout': 0.2,
  'model.conv_backend': 'xla',
  'model.remat': True,
  'data.name': 'cifar10',
  'data.data_dir': '/nowhere',
  'data.train_split': 'test',
  'data.eval_split': 'train',
  'data.image_size': 15,
  'data.size_schedule': ((0.0, 8), (1.0, 16)),
  'data.eval_size': 14,
  'data.crop': 'none',
  'data.interpolation': 'bicubic',
  'data.augment_on': 'device',
  'data.on_bad_image': 'skip',
  'augment.operations': ('erasing',),
  'augment.interpolation': 'bilinear',
  'augment.mix_group_size': 16,
  'augment.erase_fill': 'mean',
  'optimizer.name': 'sgdw',
  'optimizer.decay_rule': 'kernels',
  'optimizer.clip_norm': 0.1,
  'optimizer.clip_adaptive': 0.1,
  'optimizer.sam_rho': 0.05,
  'schedule.name': 'cosine',
  'loss.name': 'binary_cross_entropy',
  'loss.reduction': 'sum',
}


def another(field, value):
  """Returns another value of a field, or None where that is its value."""
  if field in OTHER_VALUES:
    return OTHER_VALUES[field]
  if isinstance(value, bool):
    return not value
  if isinstance(value, int):
    return 2 * value or 1
  if isinstance(value, float):
    return value / 2 or 0.5
  return value and tuple(number / 2 for number in value)


def observe(changes, *, trace_network):
  """Returns what a run does, as far as it shows before anything is compiled.

  These are resolved settings, batches, and the programs of the optimizer, the
  loss and so on; that of the network, which takes longer, only when asked for.
  """
  opened = []

  def open_source(name, split, *, data_dir, image_size, **_):
    opened.append((name, data_dir))
    return registry.open_source('fake', split, image_size=image_size)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(pipeline, 'open_source', open_source)
    run = resolve(**changes)
  task, readers = run.task, (run.train_reader, run.eval_reader)
  leaves = {'kernel': np.ones((2, 2), 'f'), 'bias': np.ones(2, 'f')}
  params = {'stem_conv': leaves, 'head': leaves}
  programs = [
    program(lambda x: task.tx.update(x, task.tx.init(x), x), params),
    program(task.schedule, np.int32(0)),
    program(task.loss_fn, np.eye(4, dtype='f'), np.arange(4, dtype='i')),
    program(task.normalize, np.ones((1, 2, 2, 3), 'f')),
  ]
  if trace_network:
    images = np.zeros((16, *run.image_shape), 'f')
    programs.append(program(functools.partial(train_network, task), images))
  return (
    settings(
      run, but=('config', 'task', 'sharding', 'train_reader', 'eval_reader')
    ),
    settings(task, but=('model', 'tx', 'schedule', 'loss_fn')),
    dict(run.sharding.mesh.shape),
    [(reader.max_bad_images, len(reader.source)) for reader in readers],
    [{key: rows.tobytes() for key, rows in r(0).items()} for r in readers],
    opened,
    programs,
  )


def settings(given, *, but):
  """Returns the fields of a dataclass, except some."""
  names = {field.name for field in dataclasses.fields(given)}
  return {name: getattr(given, name) for name in names.difference(but)}


def program(function, *args):
  """Returns the text of a traced function and the constants in it."""
  with jax.numpy_dtype_promotion('standard'):  # Optax's Adam: float ** count.
    traced = jax.make_jaxpr(function)(*args)
  return str(traced), [np.asarray(x).tolist() for x in traced.consts]


def train_network(task, images):
  """Returns first variables, and what a training step makes of the images."""
  key = jax.random.key(0)
  variables = task.model.init(key, images, train=False)
  return variables, task.model.apply(
    variables,
    images,
    train=True,
    mutable=['batch_stats'],
    rngs={'dropout': key},
  )


@functools.cache
def observe_unchanged(name, *, trace_network):
  """Returns what a run does, which is the same each time."""
  seen = observe(RUNS[name], trace_network=trace_network)
  assert seen == observe(RUNS[name], trace_network=trace_network)
  return seen


def is_read(field, name):
  """Whether a run does something else when the field has another value."""
  trace_network = field.startswith('model.')
  value = flatten(fake_config(**RUNS[name]))[field]
  changes = {**RUNS[name], field: another(field, value)}
  try:
    changed = observe(changes, trace_network=trace_network)
  except InputError:  # The value does not fit the rest of this run.
    return False
  return changed != observe_unchanged(name, trace_network=trace_network)


@pytest.mark.parametrize(
  'field',
  # It is implied by `fsdp` and refused when it does not fit, see below.
  sorted(set(flatten(default.get_config())) - {'sharding.data'}),
)
def test_every_field_has_an_effect(field):
  # Those of the loop and of checkpoints are read by name where they act.
  by_name = f"config['{field}']" in SOURCE_OF_RUN
  assert by_name or any(is_read(field, name) for name in RUNS)


# What builders of data, networks and optimizers check is tested beside them;
# here, that their refusals arrive.
@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'batch_size': 12}, r'8 devices .* multiple of 8.*=8 or 16'),
    ({'batch_size': 1024}, 'more than the 512 training images'),
    ({'eval_every_epochs': 1e-320}, 'eval_every_epochs'),
    ({'ema_decay': 1.0}, r'ema_decay=1.0 is not in \(0, 1\)'),
    ({'augment__mix_group_size': 7}, 'mix_group_size=7 does not divide'),
    ({'schedule__decay_epochs': (1e10,)}, 'decay_epochs=.* less than 2'),
    ({'data__name': 'fakes'}, 'Did you mean: fake'),
    ({'data__train_split': 'trian'}, 'There are: train, test'),
    ({'data__eval_resize': 10**8}, 'eval_resize'),
    ({'model__name': 'cifar_resnet21'}, 'Did you mean: .*cifar_resnet20'),
    ({'model__num_classes': 5}, r'0\s+to 9.*num_classes=10'),
    ({'model__bn_group_size': 7}, 'does not divide batch_size, 64 images'),
    ({'model__frozen_stages': 4}, r'frozen_stages=4 is not in 0 \.\. 3'),
    (
      {'model__name': 'lecture_resnet50', 'model__dropout': 0.1},
      "lecture_resnet50 has no 'dropout'",
    ),
    ({'sharding__fsdp': 3}, r'fsdp=3 .* 8 devices: use one of 1, 2, 4, 8'),
    (
      {'sharding__data': 8, 'sharding__fsdp': 2},
      r'data=8 times sharding.fsdp=2 .* 8: .*sharding.data=4',
    ),
  ],
)
def test_errors_name_bad_values(changes, message):
  with pytest.raises(InputError, match=message):
    resolve(**changes)


def test_evaluations_run_at_the_nearest_step_of_each_interval():
  run = resolve(batch_size=48, num_epochs=3.0)
  assert run.length.steps_per_epoch == pytest.approx(512 / 48)
  due = [s for s in range(1, 33) if run.is_eval_step(s)]
  assert due == [11, 21, 32]
  often = resolve(eval_every_epochs=0.01)
  assert all(often.is_eval_step(step) for step in range(1, 17))


@pytest.mark.parametrize(
  ('changes', 'field', 'cause'),
  [
    ({'ema_every_steps': 4}, 'ema_every_steps=4', 'ema_decay=None'),
    (
      {'schedule__name': 'cosine'},
      'schedule.decay_epochs=[1.0]',
      "schedule.name='cosine'",
    ),
    (
      {'schedule__warmup_learning_rate': 0.01},
      'schedule.warmup_learning_rate=0.01',
      'schedule.warmup_epochs=0.0',
    ),
    ({'loss__reduction': 'sum'}, "loss.reduction='sum'", 'cross_entropy'),
  ],
)
def test_fields_without_effect_give_a_notice(changes, field, cause):
  (notice,) = fields.notices(resolve(**changes).config)
  assert field in notice and 'no effect' in notice and cause in notice


def test_mix_groups_default_to_groups_of_batch_statistics():
  mixed = {'augment__mixup_alpha': 0.2}
  for size in ({'augment__mix_group_size': 4}, {'model__bn_group_size': 8}):
    run = resolve(**mixed, **size)
    assert run.task.augmentation.mixing.group_size == next(iter(size.values()))


@pytest.mark.filterwarnings('ignore:.*load_module:DeprecationWarning')
def test_the_command_line_accepts_none_for_optional_fields():
  argv = ['main.py', f'--config={ROOT}/configs/fake.py']
  optional = {name for name, field in FIELDS.items() if None in field.also}
  given = [f'--config.{field}=None' for field in optional]
  given += ['--config.ema_decay=0.9', '--config.ema_decay', 'None']
  config, _ = config_lib.read([*argv, *given])
  flat = flatten(config)
  assert {field for field in flat if flat[field] is None} == optional
  assert experiment.resolve(config).config['watchdog_seconds'] is None
  # A flag without a value is a truth value, and takes no other flag for one.
  plain = ['main.py', '--config.data.flip', '--workdir=x']
  assert config_lib.split_none(plain) == (plain, [])
  with pytest.raises(InputError, match='batch_size=None'):
    experiment.resolve(config_lib.read([*argv, '--config.batch_size=None'])[0])
  with pytest.raises(InputError, match=r'(?s)nam.*name'):
    config_lib.read([*argv, '--config.model.nam=None'])
