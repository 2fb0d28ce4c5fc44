"""The experiments that `reproduce` makes, and the papers' numbers for them."""

from collections.abc import Mapping
import dataclasses

from resnet.errors import InputError
from resnet.tools.reproduce.grids import Experiment, Fields, Group

_TABLE_6 = 'He et al. 2016, Table 6'
_FIGURE_6 = 'He et al. 2016, read off Figure 6'
_TABLE_2 = 'He et al. 2016, Table 2, ten crops'
_TABLE_3 = 'He et al. 2016, Table 3, ten crops'
_V2_TABLE_2 = '"Identity mappings", Table 2, median of 5'
_CIFAR_ERRORS = {
  20: 8.75,
  32: 7.51,
  44: 7.17,
  56: 6.97,
  110: 6.43,
  1202: 7.93,
}
_RESIDUAL = Group(model='resnet{}'.format)
_PLAIN = Group(model='plain{}'.format)
# Of `ladder`: each has what those before it have too.
_RUNGS: dict[str, Fields] = {
  'baseline': {},
  '+smoothing': {'loss.label_smoothing': 0.1},
  '+cosine': {'schedule.name': 'cosine', 'schedule.decay_epochs': ()},
  '+erasing': {'augment.operations': ('erasing',)},
  '+mixup': {'augment.mixup_alpha': 0.2},
  '+ema': {'ema_decay': 0.99},
}
_LADDER_EPOCHS = 10.0
_RESIDUAL_ON_CIFAR = {
  ('cifar10', 'residual', depth): (error, _TABLE_6)
  for depth, error in _CIFAR_ERRORS.items()
} | {
  ('cifar10', 'residual', 110): (6.43, f'{_TABLE_6}: best of 5, 6.61 ± 0.16')
}
_ON_CIFAR = _RESIDUAL_ON_CIFAR | {
  ('cifar10', 'plain', 20): (9.5, _FIGURE_6),
  ('cifar10', 'plain', 56): (13.5, _FIGURE_6),
  ('cifar10', 'plain', 110): (60.0, f'{_FIGURE_6}: more than that'),
}


def _bottleneck_depth(basic_depth: int) -> int:
  """Layers with as many bottlenecks of three as basic blocks of two."""
  if basic_depth % 6 != 2:
    raise InputError(
      f'--depths={basic_depth}: basic blocks make 6n + 2 layers, such as 20, 56'
      ' or 110.'
    )
  return (basic_depth - 2) // 2 * 3 + 2


def _ladder(rungs: Mapping[str, Fields]) -> dict[str, Group]:
  """Returns a group a rung, with the fields of all rungs up to it."""
  groups, fields = {}, {}
  for name, added in rungs.items():
    fields = {**fields, **added}
    groups[name] = dataclasses.replace(_RESIDUAL, fields=fields)
  return groups


EXPERIMENTS: dict[str, Experiment] = {
  'degradation': Experiment(
    title='Plain and residual nets over depth',
    groups={
      'plain': _PLAIN,
      # Table 2 compares parameter-free shortcuts.
      'residual': dataclasses.replace(
        _RESIDUAL, fields={'model.shortcut': 'A'}
      ),
    },
    depths={
      'digits': (20, 56, 110),
      'fashion_mnist': (20,),
      'cifar10': (20, 56, 110),
      'imagenet2012': (18, 34),
    },
    paper=_ON_CIFAR
    | {
      ('imagenet2012', 'plain', 18): (27.94, _TABLE_2),
      ('imagenet2012', 'plain', 34): (28.54, _TABLE_2),
      ('imagenet2012', 'residual', 18): (27.88, _TABLE_2),
      ('imagenet2012', 'residual', 34): (25.03, _TABLE_2),
    },
    budget={'digits': '30 minutes, one seed 10'},
  ),
  'shortcuts': Experiment(
    title='Shortcut options A, B and C',
    groups={
      option: dataclasses.replace(_RESIDUAL, fields={'model.shortcut': option})
      for option in ('A', 'B', 'C')
    },
    depths={'digits': (56,), 'cifar10': (56,), 'imagenet2012': (34,)},
    paper={
      ('imagenet2012', 'A', 34): (25.03, _TABLE_3),
      ('imagenet2012', 'B', 34): (24.52, _TABLE_3),
      ('imagenet2012', 'C', 34): (24.19, _TABLE_3),
    },
    budget={'digits': '30 minutes'},
  ),
  'responses': Experiment(
    title='Standard deviation of layer responses',
    groups={'plain': _PLAIN, 'residual': _RESIDUAL},
    depths={'digits': (20, 56), 'cifar10': (20, 56, 110)},
    paper=_ON_CIFAR,
    budget={'digits': '30 minutes'},
    says='residual nets respond less than plain ones, deeper nets less than'
    ' shallower ones (Figure 7).',
    shows='responses',
  ),
  'bottleneck': Experiment(
    title='Basic blocks and as many bottlenecks, at nearly equal cost',
    groups={
      'basic': _RESIDUAL,
      'bottleneck': Group(
        model=lambda depth: f'bottleneck_resnet{_bottleneck_depth(depth)}'
      ),
    },
    depths={'digits': (20, 56), 'cifar10': (20, 56, 110)},
    paper={
      ('cifar10', 'basic', depth): (error, _TABLE_6)
      for depth, error in _CIFAR_ERRORS.items()
    },
    says='on ImageNet (option B, ten crops) ResNet-34 has a top-1 error of'
    ' 24.52 %, and ResNet-50, as many bottlenecks, 22.85 % (Table 3).',
    budget={'digits': '30 minutes'},
  ),
  'identity': Experiment(
    title='Residual branches that begin as zero',
    groups={
      'ordinary': dataclasses.replace(
        _RESIDUAL, fields={'model.zero_init_last_scale': False}
      ),
      'identity': dataclasses.replace(
        _RESIDUAL, fields={'model.zero_init_last_scale': True}
      ),
    },
    depths={'digits': (20, 56, 110), 'cifar10': (20, 56, 110)},
    paper={},
    budget={'digits': '30 minutes'},
    # What is asked is how it begins, at the full rate.
    fields={
      'num_epochs': 3.0,
      'log_every_steps': 1,
      'schedule.warmup_epochs': 0.0,
    },
    shows='loss',
  ),
  'preact': Experiment(
    title='v1 and pre-activation (v2)',
    groups={'v1': _RESIDUAL, 'v2': Group(model='preact_resnet{}'.format)},
    depths={'digits': (110,), 'cifar10': (110,)},
    paper={
      ('cifar10', 'v1', 110): (6.61, _V2_TABLE_2),
      ('cifar10', 'v2', 110): (6.37, _V2_TABLE_2),
    },
    budget={'digits': '60 minutes'},
  ),
  'cifar': Experiment(
    title='Residual nets of CIFAR size over depth',
    groups={'residual': _RESIDUAL},
    depths={
      'cifar10': (20, 32, 44, 56, 110, 1202),
      'digits': (20, 32, 44, 56, 110),
      'fashion_mnist': (20,),
    },
    paper=_RESIDUAL_ON_CIFAR,
    budget={'digits': '60 minutes', 'fashion_mnist': '2 hours'},
    num_seeds=1,
  ),
  'ladder': Experiment(
    title='Ingredients, one after the other',
    groups=_ladder(_RUNGS),
    depths={'fashion_mnist': (20,)},
    paper={},
    budget={'fashion_mnist': '2 hours'},
    # A twentieth of the images, and He et al.'s steps for a baseline.
    fields={
      'num_epochs': _LADDER_EPOCHS,
      'eval_every_epochs': _LADDER_EPOCHS,
      'data.train_split': 'train[:3000]',
      'schedule.name': 'step',
      'schedule.decay_epochs': (_LADDER_EPOCHS / 2, _LADDER_EPOCHS * 3 / 4),
    },
    shows='gains',
  ),
}


def find(experiment: str, data: str | None) -> tuple[Experiment, str]:
  """Returns an experiment and the data set it is to be made on.

  Raises:
    InputError: there is no such experiment, or not on such data.
  """
  if experiment not in EXPERIMENTS:
    raise InputError(
      f'There is no experiment {experiment!r}; there are:'
      f' {", ".join(EXPERIMENTS)}.'
    )
  chosen = EXPERIMENTS[experiment]
  data = data or next(iter(chosen.depths))
  if data not in chosen.depths:
    raise InputError(
      f'{experiment} is not declared on --data={data}; it is on:'
      f' {", ".join(chosen.depths)}.'
    )
  return chosen, data
