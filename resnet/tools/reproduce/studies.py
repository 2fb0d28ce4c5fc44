"""Studies of `resnet.tools.reproduce`, and the published results."""

from itertools import accumulate
import operator

from configs import imagenette
from resnet.tools.reproduce.grids import Fields, Study

# Top-1 test error in %, by data set and label of the network.
PAPER = {
  'cifar10': {
    'plain20': 'about 9.5',
    'plain56': 'about 13.5',
    'plain110': 'over 60',
    'resnet20': '8.75',
    'resnet32': '7.51',
    'resnet44': '7.17',
    'resnet56': '6.97',
    'resnet110': '6.43 (best of 5; 6.61 ± 0.16)',
    'resnet1202': '7.93',
    'preact_resnet110': '6.37 (median of 5)',
  },
  'imagenet2012': {
    'plain18': '27.94',
    'plain34': '28.54',
    'resnet18': '27.88',
    'resnet34': '25.03',
    'resnet34 A': '25.03',
    'resnet34 B': '24.52',
    'resnet34 C': '24.19',
  },
}
PAPER_SOURCE = (
  "The papers' test errors: for CIFAR-10 they are from He et al. 2016, Table 6"
  ' (plain nets: read off Figure 6; v2: "Identity mappings", Table 2); for'
  ' ImageNet they are from He et al. 2016, Tables 2 and 3, ten crops.'
)
# Top-1 accuracy in %, by recipe of configs/imagenette.py.
LEADERBOARD = {
  '128x5': 85.77,
  '128x20': 91.57,
  '128x80': 93.55,
  '192x20': 92.50,
  '192x80': 94.50,
}
LEADERBOARD_SOURCE = (
  "fast.ai's accuracies are from the leaderboard of"
  ' github.com/fastai/imagenette: 3,925 validation images, one crop; for 5 and'
  ' 20 epochs the mean of five runs. They are not of the same networks: fast.ai'
  ' trained variants of XResNet-50 with Mish and other additions.'
)
_PLAIN: Fields = {'model.name': 'plain{0}'}
_LADDER_EPOCHS = 10.0
_LADDER: dict[str, Fields] = {
  'baseline': {},
  '+smoothing': {'loss.label_smoothing': 0.1},
  '+cosine': {'schedule.name': 'cosine', 'schedule.decay_epochs': ()},
  '+erasing': {'augment.operations': ('erasing',)},
  '+mixup': {'augment.mixup_alpha': 0.2},
  '+ema': {'ema_decay': 0.99},
}

STUDIES = {
  'degradation': Study(
    title='Plain and residual nets over depth',
    source='He et al. 2016, Figures 1, 4 and 6',
    # The residual nets of the paper's Table 2 have parameter-free shortcuts.
    groups={'plain': _PLAIN, 'residual': {'model.shortcut': 'A'}},
    depths={
      'digits': (20, 56, 110),
      'fashion_mnist': (20,),
      'cifar10': (20, 56, 110),
      'imagenet2012': (18, 34),
    },
  ),
  'shortcuts': Study(
    title='Shortcut options A, B and C',
    source='He et al. 2016, Table 3',
    groups={option: {'model.shortcut': option} for option in ('A', 'B', 'C')},
    depths={'digits': (56,), 'cifar10': (56,), 'imagenet2012': (34,)},
  ),
  'responses': Study(
    title='Standard deviation of layer responses',
    source='He et al. 2016, Figure 7',
    groups={'plain': _PLAIN, 'residual': {}},
    depths={'digits': (20, 56), 'cifar10': (20, 56, 110)},
    shows='responses',
  ),
  'bottleneck': Study(
    title='Basic blocks and as many bottlenecks, at nearly equal cost',
    source='He et al. 2016, Figure 5',
    groups={'basic': {}, 'bottleneck': {'model.name': 'bottleneck_resnet{1}'}},
    depths={'digits': (20, 56), 'cifar10': (20, 56, 110)},
  ),
  'identity': Study(
    title='Residual branches that begin as zero',
    source='Goyal et al. 2017, section 5.1',
    groups={
      'ordinary': {'model.zero_init_last_scale': False},
      'identity': {'model.zero_init_last_scale': True},
    },
    depths={'digits': (20, 56, 110), 'cifar10': (20, 56, 110)},
    # The study compares the start of training, at the full learning rate.
    fields={
      'num_epochs': 3.0,
      'log_every_steps': 1,
      'schedule.warmup_epochs': 0.0,
    },
    shows='loss',
  ),
  'preact': Study(
    title='v1 and pre-activation (v2)',
    source='He et al. 2016, "Identity mappings"',
    groups={'v1': {}, 'v2': {'model.name': 'preact_resnet{0}'}},
    depths={'digits': (110,), 'cifar10': (110,)},
  ),
  'cifar': Study(
    title='Residual nets of CIFAR size over depth',
    source='He et al. 2016, Table 6',
    groups={'residual': {}},
    depths={
      'cifar10': (20, 32, 44, 56, 110, 1202),
      'digits': (20, 32, 44, 56, 110),
      'fashion_mnist': (20,),
    },
    num_seeds=1,
  ),
  'ladder': Study(
    title='Ingredients, one after the other',
    source='modern recipes; no paper',
    # Each group also has the fields of those before it.
    groups=dict(
      zip(_LADDER, accumulate(_LADDER.values(), operator.or_), strict=True)
    ),
    depths={'fashion_mnist': (20,)},
    # A twentieth of the images. The baseline has the step schedule of He et al.
    fields={
      'num_epochs': _LADDER_EPOCHS,
      'eval_every_epochs': _LADDER_EPOCHS,
      'data.train_split': 'train[:3000]',
      'schedule.name': 'step',
      'schedule.decay_epochs': (_LADDER_EPOCHS / 2, _LADDER_EPOCHS * 3 / 4),
    },
    shows='gains',
  ),
  'imagenette': Study(
    title='Training from random weights',
    source="fast.ai's leaderboard of Imagenette",
    groups={
      recipe: {'model.name': 'resnet{0}d'} for recipe in imagenette.RECIPES
    },
    depths={'folder': (18,)},
    spec='{group},{net}',
    shows='accuracy',
  ),
}
