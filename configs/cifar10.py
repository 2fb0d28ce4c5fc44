"""The CIFAR-10 nets and recipe of He et al. 2016, section 4.2.

  python main.py --config=configs/cifar10.py:resnet56

The argument after the colon is the net: resnet20, 32, 44, 56, 110 or 1202;
plain20, 32, 44, 56 or 110 (no shortcuts); or preact_resnet110, 164 or 1001
(v2). A number of epochs, as in `:resnet20,20`, replaces the paper's recipe with
a short one: one cycle of the learning rate, on all 50,000 images.

Prepare the set once, from its binary archive or from class folders of images:

  prepare='python -m resnet.tools.prepare --out=DIR'
  $prepare --from=cifar --source=cifar-10-binary.tar.gz
  $prepare --from=folder --source=FOLDER --name=cifar10_jpeg --raw
  python main.py --config=configs/cifar10.py:resnet20,20 \\
    --config.data.data_dir=DIR [--config.data.name=cifar10_jpeg]

Hardware: one GPU; for the short recipe two CPU cores.
Published test error, %: 8.75 (20), 7.51 (32), 7.17 (44), 6.97 (56),
6.43 (110), 7.93 (1202); plain nets, read off Figure 6: about 9.5 (20), 13.5
(56), over 60 (110). v2 ("Identity mappings", Table 4, another recipe): 5.46
(164), 4.92 (1001). The paper's recipe: not run. Ours with `:resnet20,20` on the
JPEG copies: 13.60, two cores of an AMD EPYC, 92 minutes beside other jobs.

As in the paper, a run makes 64,000 updates on 45,000 images and divides the
learning rate after 32,000 and 48,000.

What differs: the paper subtracts the mean of each pixel; we subtract the mean
of each channel and divide by its standard deviation.
"""

import re

from configs import default
from resnet.errors import InputError


def get_config(spec='resnet56'):
  net, _, num_epochs = spec.partition(',')
  config = default.get_config()
  batch_size, num_train = 128, 45_000
  epochs = batch_size / num_train  # Epochs per update.
  config.batch_size = batch_size
  config.num_epochs = 64_000 * epochs
  config.eval_every_epochs = 5.0

  config.model.name = f'cifar_{net}'

  config.data.name = 'cifar10'
  config.data.train_split = f'train[:{num_train}]'
  config.data.eval_split = 'test'
  config.data.image_size = 32
  config.data.eval_resize = 32
  config.data.crop = 'pad'

  config.schedule.base_batch_size = batch_size
  config.schedule.decay_epochs = (32_000 * epochs, 48_000 * epochs)
  depth = re.search(r'\d+$', net)
  if num_epochs:
    if not num_epochs.isdecimal():
      raise InputError(
        f'configs/cifar10.py:{spec}: {num_epochs!r} is not a number of epochs:'
        ' type one such as resnet20,20.'
      )
    _shorten(config, int(num_epochs))
  elif depth and int(depth[0]) >= 110:
    # The paper trains its ResNet-110 at a rate of 0.01 until the training error
    # is below 80 % (about 400 updates). We use a linear warm-up of that length,
    # for plain nets too.
    config.schedule.warmup_epochs = 400 * epochs
  return config


def _shorten(config, num_epochs):
  """Changes the paper's recipe into one cycle of this many epochs."""
  config.num_epochs = float(num_epochs)
  config.eval_every_epochs = 1.0

  config.data.train_split = 'train'

  config.optimizer.nesterov = True
  config.optimizer.weight_decay = 5e-4
  config.optimizer.decay_rule = 'kernels'

  config.schedule.name = 'one_cycle'
  config.schedule.learning_rate = 0.2
  config.schedule.decay_epochs = ()
  config.schedule.warmup_epochs = 0.25 * num_epochs
