"""Configs build, every field is read, and bad values are named."""

import dataclasses
import functools
import importlib
import pathlib

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import pytest

from configs import default, fake
from resnet import experiment
from resnet.data import datasets
from resnet.errors import InputError

ROOT = pathlib.Path(__file__).parent.parent
CONFIGS = sorted(
  path.stem
  for path in (ROOT / 'configs').glob('*.py')
  # Of finetune, see tests/test_finetune.py: it needs weights.
  if path.stem not in ('__init__', 'finetune')
)
CIFAR_NETS = [
  *(f'resnet{depth}' for depth in (20, 32, 44, 56, 110, 1202)),
  *(f'plain{depth}' for depth in (20, 110)),
  'preact_resnet164',
]


def configure(**changes):
  """Returns the config `fake` with fields changed; '__' is a dot."""
  config = fake.get_config()
  for name, value in changes.items():
    config.update_from_flattened_dict({name.replace('__', '.'): value})
  return config


@pytest.fixture
def _imagenet_and_cifar(monkeypatch):
  """Stands in for sets that cannot be had here; everything else is real."""
  real = datasets.open_source

  def open_source(name, split, **kwargs):
    if name in ('digits', 'fake'):
      return real(name, split, **kwargs)
    source = real('fake', 'train', **kwargs)
    if name != 'imagenet2012':
      return dataclasses.replace(source, name=name)
    records = dataclasses.replace(source.records, length=1_281_167)
    return dataclasses.replace(
      source, name=name, num_classes=1000, records=records
    )

  monkeypatch.setattr('resnet.data.pipeline.open_source', open_source)


@pytest.mark.usefixtures('_imagenet_and_cifar')
@pytest.mark.parametrize(
  ('name', 'args'),
  [(name, ()) for name in CONFIGS]
  + [('cifar10', (net,)) for net in CIFAR_NETS],
)
def test_every_config_builds(name, args):
  config = importlib.import_module(f'configs.{name}').get_config(*args)
  assert config.is_locked
  run = experiment.resolve(config)
  state = run.abstract_state()
  assert state.params['head']['bias'].shape == (
    1000 if 'imagenet' in config.data.name else 10,
  )
  reader = run.train_reader
  batch = dataclasses.replace(reader, row_count=2)(0)
  assert batch['image'].shape == (2, *run.at(0).image_shape)
  if args:
    assert run.length.num_steps == round(64_000 * 512 / 45_000)


def test_every_file_says_what_it_is_for():
  for name in set(CONFIGS) - {'default', 'fake'}:
    header = importlib.import_module(f'configs.{name}').__doc__
    assert 'python main.py' in header, name
    assert 'Hardware:' in header, name
    if name not in ('digits', 'paper_digits', 'fashion_mnist'):
      assert 'Not run.' in header, name


# Another valid value of every field, with what must be changed besides.
OTHER_VALUES = {
  'seed': 1,
  'init_from': 'weights.safetensors',
  'batch_size': 32,
  'num_epochs': 3.0,
  'accumulation_steps': 2,
  'log_every_steps': 5,
  'eval_every_epochs': 0.5,
  'save_every_steps': 5,
  'keep_checkpoints': 1,
  'max_bad_steps': 3,
  'watchdog_seconds': 60.0,
  'preemption_grace_seconds': 5.0,
  'ema_decay': 0.99,
  'ema_every_steps': 4,
  'model.name': 'cifar_resnet20',
  'model.num_classes': 11,
  'model.dtype': 'bfloat16',
  'model.zero_init_last_scale': True,
  'model.shortcut': 'B',
  'model.bn_group_size': 8,
  'model.bn_momentum': 0.5,
  'model.frozen_stages': 1,
  'model.frozen_bn': True,
  'model.drop_path': 0.1,
  'model.dropout': 0.2,
  'model.conv_backend': 'xla',
  'model.remat': True,
  'data.name': 'digits',
  'data.data_dir': '/nowhere',
  'data.train_split': 'test',
  'data.eval_split': 'train',
  'data.image_size': 15,
  'data.size_schedule': ((0.0, 8), (1.0, 16)),
  'data.eval_size': 14,
  'data.crop': 'none',
  'data.crop_area': (0.5, 0.6),
  'data.crop_aspect': (1.0, 1.0),
  'data.crop_padding': 4,
  'data.flip': False,
  'data.repeats': 2,
  'data.eval_resize': 20,
  'data.interpolation': 'bicubic',
  'data.augment_on': 'device',
  'data.mean': (1.0, 2.0, 3.0),
  'data.std': (1.0, 2.0, 3.0),
  'data.num_workers': 1,
  'data.num_threads': 3,
  'data.prefetch_batches': 3,
  'data.on_bad_image': 'skip',
  'data.max_bad_images': 3,
  'data.max_worker_restarts': 3,
  'augment.operations': ('erasing',),
  'augment.num_layers': 1,
  'augment.magnitude': 15,
  'augment.magnitude_std': 1.5,
  'augment.operation_probability': 0.5,
  'augment.interpolation': 'bilinear',
  'augment.jitter': (0.1, 0.2, 0.3, 0.4),
  'augment.lighting': 0.2,
  'augment.erase_probability': 0.5,
  'augment.erase_area': (0.1, 0.2),
  'augment.erase_aspect': (1.0, 1.0),
  'augment.erase_fill': 'mean',
  'augment.mixup_alpha': 0.2,
  'augment.cutmix_alpha': 1.0,
  'augment.mix_probability': 0.5,
  'augment.cutmix_share': 0.7,
  'sharding.data': 8,
  'sharding.fsdp': 2,
  'optimizer.name': 'none',
  'optimizer.momentum': 0.5,
  'optimizer.nesterov': True,
  'optimizer.trust_coefficient': 0.01,
  'optimizer.b2': 0.99,
  'optimizer.eps': 0.1,
  'optimizer.weight_decay': 0.1,
  'optimizer.decay_rule': 'kernels',
  'optimizer.clip_norm': 0.1,
  'optimizer.clip_adaptive': 0.1,
  'optimizer.lookahead_steps': 2,
  'optimizer.lookahead_share': 0.25,
  'optimizer.sam_rho': 0.05,
  'optimizer.backbone_multiplier': 0.5,
  'schedule.name': 'cosine',
  'schedule.learning_rate': 0.3,
  'schedule.base_batch_size': 10,
  'schedule.warmup_epochs': 0.5,
  'schedule.decay_epochs': (0.5,),
  'schedule.decay_factor': 0.5,
  'schedule.decay_power': 1.0,
  'schedule.cooldown_epochs': 1.0,
  'schedule.warmup_learning_rate': 0.05,
  'schedule.final_learning_rate': 0.01,
  'loss.name': 'binary_cross_entropy',
  'loss.label_smoothing': 0.1,
  'loss.target_threshold': 0.2,
  'loss.reduction': 'sum',
}
LAMB = {'optimizer.name': 'lamb', 'optimizer.decay_rule': 'kernels'}
BINARY = {'loss.name': 'binary_cross_entropy', 'loss.label_smoothing': 0.4}
ERASING = {'augment.operations': ('erasing',)}
RAND = {'augment.operations': ('randaugment',)}
MIXING = {'augment.mixup_alpha': 0.1, 'augment.cutmix_alpha': 0.3}
BESIDES = {
  'loss.target_threshold': BINARY,
  'loss.reduction': BINARY,
  **{
    f'augment.erase_{name}': {**ERASING, 'augment.erase_probability': 1.0}
    for name in ('probability', 'area', 'aspect', 'fill')
  },
  'augment.num_layers': RAND,
  'augment.magnitude': RAND,
  'augment.magnitude_std': RAND,
  'augment.operation_probability': RAND,
  'augment.interpolation': RAND,
  'augment.jitter': {'augment.operations': ('color_jitter',)},
  'augment.lighting': {'augment.operations': ('lighting',)},
  'augment.mix_probability': MIXING,
  'augment.cutmix_share': MIXING,
  # Of another number of devices the run says that they are not all.
  'sharding.data': {'sharding.fsdp': 2},
  'optimizer.trust_coefficient': {**LAMB, 'optimizer.name': 'lars'},
  'optimizer.b2': LAMB,
  'optimizer.eps': LAMB,
  'ema_every_steps': {'ema_decay': 0.9},
  'optimizer.lookahead_share': {'optimizer.lookahead_steps': 2},
  'schedule.decay_power': {
    'schedule.name': 'polynomial',
    'schedule.decay_epochs': (),
  },
  'schedule.cooldown_epochs': {
    'schedule.name': 'wsd',
    'schedule.decay_epochs': (),
    'schedule.cooldown_epochs': 0.5,
  },
  'schedule.warmup_learning_rate': {'schedule.warmup_epochs': 0.5},
  'schedule.final_learning_rate': {
    'schedule.name': 'cosine',
    'schedule.decay_epochs': (),
  },
  'model.conv_backend': {'model__shortcut': 'B'},
  'schedule.name': {'schedule.decay_epochs': ()},
  'data.size_schedule': {'data.crop': 'random_resized'},
  'data.crop_area': {'data.crop': 'random_resized'},
  'data.crop_aspect': {'data.crop': 'random_resized'},
  'data.interpolation': {'data.crop': 'random_resized'},
  'data.max_bad_images': {'data.on_bad_image': 'skip'},
}


def observe(config):
  """Returns everything that a run can be seen to do; or its refusal."""
  opened = []
  real = datasets.open_source
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      'resnet.data.pipeline.open_source',
      lambda *args, **kwargs: (
        opened.append(kwargs['data_dir'])
        or real(*args, **{**kwargs, 'data_dir': None})
      ),
    )
    try:
      run = experiment.resolve(config)
    except InputError as error:
      return str(error)
  model, tx = run.task.model, run.task.tx
  variables = jax.eval_shape(
    lambda: model.init(
      jax.random.key(run.seed), jnp.zeros((1, *run.image_shape)), train=False
    )
  )
  shapes = jax.tree.map(lambda x: str(x), variables)
  leaves = {'kernel': jnp.ones((2, 2)), 'bias': jnp.ones(2)}
  params = {'stem_conv': leaves, 'head': leaves}
  opt_state, updates = tx.init(params), []
  for _ in range(2):
    with jax.numpy_dtype_promotion('standard'):  # Optax's Adam: float ** count.
      update, opt_state = tx.update(params, opt_state, params)
    updates.append(update)
  rates = [float(run.task.schedule(s)) for s in range(run.length.num_steps)]
  losses = run.task.loss_fn(jnp.eye(4), jnp.arange(4, dtype=jnp.int32))
  jaxpr = jax.make_jaxpr(
    lambda v, x: model.apply(
      v,
      x,
      train=True,
      mutable=['batch_stats'],
      rngs={'dropout': jax.random.key(0)},
    )
  )(variables, jnp.zeros((16, *run.image_shape)))
  init = jax.make_jaxpr(
    lambda: model.init(
      jax.random.key(0), jnp.zeros((1, *run.image_shape)), train=False
    )
  )()
  return (
    run.length,
    run.seed,
    run.init_from,
    run.eval_every_epochs,
    run.save_every_steps,
    run.keep_checkpoints,
    run.max_bad_steps,
    run.watchdog_seconds,
    run.preemption_grace_seconds,
    run.task.ema_decay,
    run.task.ema_every_steps,
    run.task.sam_rho,
    run.task.log_every_steps,
    run.task.accumulation_steps,
    run.loader,
    dict(run.sharding.mesh.shape),
    run.train_reader.max_bad_images,
    run.eval_reader.max_bad_images,
    opened,
    shapes,
    str(jaxpr),
    str(init),
    str(updates),
    repr(run.task.augmentation),
    rates,
    losses.tolist(),
    run.task.normalize(jnp.ones((1, 2, 2, run.image_shape[-1]))).tolist(),
    len(run.eval_reader.source),
    *(
      {name: rows.tolist() for name, rows in reader(0).items()}
      for reader in (run.train_reader, run.eval_reader)
    ),
  )


def test_the_list_of_fields_is_complete():
  fields = {}
  for name, value in default.get_config().items():
    if isinstance(value, ConfigDict):
      fields.update({f'{name}.{key}': value[key] for key in value})
    else:
      fields[name] = value
  assert set(OTHER_VALUES) == set(fields)


@functools.cache
def observe_unchanged(besides):
  """Returns what `observe` does, which is the same each time."""
  fields = dict(besides)
  seen = observe(configure(**fields))
  assert seen == observe(configure(**fields))
  return seen


@pytest.mark.parametrize('field', sorted(OTHER_VALUES))
def test_every_field_is_read(field):
  besides = BESIDES.get(field, {})
  changed = configure(**besides)
  changed.update_from_flattened_dict({field: OTHER_VALUES[field]})
  before = {} if field == 'schedule.name' else besides
  assert observe_unchanged(tuple(before.items())) != observe(changed)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'optimizer__lookahead_steps': 2**31}, 'lookahead_steps=.* below 2'),
    ({'schedule__decay_epochs': (1e10,)}, 'decay_epochs=.* less than 2'),
    ({'batch_size': 12}, r'8 devices .* multiples of 8.*=8 or 16'),
    ({'batch_size': 24, 'accumulation_steps': 2}, r'=16 or 32'),
    ({'batch_size': -8}, 'batch_size=-8 must be positive'),
    ({'batch_size': 1024}, 'more than the 512 training images'),
    ({'num_epochs': 0.0}, 'num_epochs=0.0 must be positive'),
    ({'log_every_steps': 0}, 'log_every_steps=0'),
    ({'save_every_steps': -1}, 'save_every_steps=-1'),
    ({'seed': -1}, 'seed=-1'),
    ({'ema_decay': 1.0}, 'ema_decay=1.0 is not between 0 and 1'),
    ({'ema_every_steps': 0}, 'ema_every_steps=0 must be positive'),
    (
      {'ema_every_steps': 4},
      '=4 does nothing without ema_decay: .* --config.ema_every_steps=1',
    ),
    (
      {'optimizer__lookahead_share': 0.8},
      '=0.8 does nothing without optimizer.lookahead_steps: .*_share=0.5',
    ),
    (
      {'optimizer__name': 'adamw', 'optimizer__nesterov': True},
      "nothing to 'adamw'",
    ),
    ({'optimizer__clip_norm': -1.0}, 'clip_norm=-1.0 must be positive'),
    ({'optimizer__lookahead_steps': 0}, 'lookahead_steps=0 must be positive'),
    ({'optimizer__sam_rho': 0.0}, 'sam_rho=0.0 must be positive'),
    ({'optimizer__sam_rho': 1e39}, r'sam_rho=1e\+39 must be positive, 1e-30'),
    ({'augment__mixup_alpha': 1e39}, r'mixup_alpha=1e\+39 is neither 0'),
    ({'num_epochs': 1e300}, 'num_epochs'),
    ({'num_epochs': 1e9}, 'steps: at most'),
    ({'log_every_steps': 2**40}, 'log_every_steps'),
    ({'eval_every_epochs': 1e-320}, 'eval_every_epochs'),
    ({'data__crop_padding': 10**7}, 'crop_padding'),
    ({'data__eval_resize': 10**8}, 'eval_resize'),
    ({'data__image_size': 10**8}, 'image_size'),
    ({'data__data_dir': ''}, 'data_dir'),
    ({'model__num_classes': 2 * 10**9}, 'num_classes'),
    ({'data__image_size': 0}, 'image_size=0'),
    ({'data__eval_size': 0}, 'eval_size=0'),
    ({'data__num_threads': 0}, 'num_threads=0'),
    ({'data__on_bad_image': 'drop'}, "'drop' is none of error, skip"),
    ({'data__name': 'fakes'}, 'Did you mean: fake'),
    ({'data__train_split': 'trian'}, 'There are: train, test'),
    ({'model__name': 'cifar_resnet21'}, 'Did you mean: .*cifar_resnet20'),
    ({'model__dtype': 'float16'}, 'float32, bfloat16'),
    ({'model__shortcut': 'E'}, 'A, B, C, D, none'),
    ({'init_from': ''}, 'init_from'),
    (
      {'model__name': 'lecture_resnet50', 'model__bn_group_size': 8},
      "lecture_resnet50 has no 'bn_group_size'",
    ),
    ({'model__bn_group_size': 7}, 'does not divide batch_size, 64 images'),
    ({'model__bn_momentum': 1.5}, 'bn_momentum'),
    ({'model__drop_path': 1.0}, r'drop_path=1.0 is not in \[0, 1\)'),
    ({'model__dropout': -0.1}, r'dropout=-0.1 is not in \[0, 1\)'),
    (
      {'model__name': 'cifar_plain20', 'model__drop_path': 0.1},
      'leaves nothing of a block without',
    ),
    (
      {'model__name': 'cifar_resnet1202', 'model__drop_path': 0.1},
      'whose blocks are compiled as one',
    ),
    (
      {'model__name': 'lecture_resnet50', 'model__dropout': 0.1},
      "lecture_resnet50 has no 'dropout'",
    ),
    ({'sharding__fsdp': 3}, r'fsdp=3 .* 8 devices: take one of 1, 2, 4, 8'),
    ({'sharding__fsdp': 0}, 'fsdp=0'),
    (
      {'sharding__data': 8, 'sharding__fsdp': 2},
      r'data=8 times sharding.fsdp=2 .* 8: .*sharding.data=4',
    ),
    ({'model__frozen_stages': 4}, r'frozen_stages=4 is not in 0 \.\. 3'),
    ({'optimizer__backbone_multiplier': 2.0}, r'2.0 is not in 0 \.\. 1'),
    ({'model__num_classes': 5}, r'0\s+to 9.*num_classes=10'),
  ],
)
def test_bad_values_are_named(changes, message):
  with pytest.raises(InputError, match=message):
    experiment.resolve(configure(**changes))


def test_evaluations_are_at_the_nearest_step_of_each_interval():
  run = experiment.resolve(configure(batch_size=48, num_epochs=3.0))
  assert run.length.steps_per_epoch == pytest.approx(512 / 48)
  due = [s for s in range(1, 33) if run.is_eval_step(s)]
  assert due == [11, 21, 32]
  often = experiment.resolve(configure(eval_every_epochs=0.01))
  assert all(often.is_eval_step(step) for step in range(1, 17))


def test_all_devices_share_a_batch():
  run = experiment.resolve(configure())
  assert run.sharding.mesh.devices.size == 8
  rows = run.sharding.batch.devices_indices_map((64,))
  assert sorted(index[0].start for index in rows.values()) == list(
    np.arange(8) * 8
  )


def test_a_saved_field_that_does_nothing_keeps_no_run_from_going_on():
  config = fake.get_config()
  config.ema_every_steps = 4
  config.optimizer.lookahead_share = 0.3
  with pytest.raises(InputError, match='does nothing without'):
    experiment.resolve(config)
  today = experiment.flatten(fake.get_config())
  assert experiment.of_saved(experiment.flatten(config)) == today
  config.ema_decay, config.optimizer.lookahead_steps = 0.9, 5
  kept = experiment.of_saved(experiment.flatten(config))
  assert kept['ema_every_steps'] == 4
  assert kept['optimizer.lookahead_share'] == 0.3
