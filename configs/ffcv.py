"""ResNet-50 and ResNet-18 on ImageNet: FFCV's 16 to 88 epochs.

  python main.py --config=configs/ffcv.py:rn50_88 --workdir=DIR
  python -m resnet.tools.evaluate --config=configs/ffcv.py:rn50_88 \\
    --workdir=DIR --views=flip

The argument after the colon is the net and the epochs: rn50_16, rn50_24,
rn50_32, rn50_40, rn50_56 or rn50_88 (the default), and rn18_16 to rn18_88.

Hardware: eight GPUs of 40 GB for rn50, one for rn18. Prepare the set once
(docs/training.md).
Source: libffcv/ffcv-imagenet, rn50_configs, rn18_configs and train_imagenet.py,
confirmed value by value.
Aim: top-1 of one 256-pixel centre crop and its mirror image, %, and FFCV's time
in minutes on eight A100s (rn50) or one (rn18):

  epochs      16    24    32    40    56    88
  rn50      73.8  75.6  76.6  77.2  78.0  78.4
  minutes   14.9  21.7  28.7  35.6  49.4  77.2
  rn18      66.9  68.8  70.0  70.6  71.3  72.4
  minutes   35.0  51.6  68.9  85.5 119.4 187.3

Not run.

What differs: FFCV applies BlurPool before all strided convolutions except the
first; we do not. It stores images at up to 500 pixels (rn50) or 400 (rn18),
partly as JPEG of quality 90, and resizes them by area averages. It decays the
bias of the head and the batch norms of shortcuts. It adds the logits of both
views; `--views=flip` averages their probabilities. Its head starts with
PyTorch's uniform initialisation, ours with a normal distribution of standard
deviation 0.01. Evaluation is at 224 pixels in its README, at 256 in its files.
"""

from configs import default
from resnet.errors import InputError, nearest

_RECIPES = {
  f'{net}_{epochs}': (net, epochs)
  for net in ('rn18', 'rn50')
  for epochs in (16, 24, 32, 40, 56, 88)
}
# First epoch at 192 pixels, by number of epochs. FFCV's linear ramp from 160
# pixels, rounded to multiples of 32 at the start of each epoch, jumps to 192 in
# its middle.
_LARGE_FROM = {16: 12, 24: 19, 32: 25, 40: 32, 56: 45, 88: 71}
# Network, batch size, images per device, learning rate for that batch size,
# weight decay.
_NETS = {
  'rn18': ('resnet18', 1024, 1024, 0.5, 5e-5),
  'rn50': ('resnet50', 4096, 512, 1.7, 1e-4),
}


def get_config(recipe='rn50_88'):
  if recipe not in _RECIPES:
    raise InputError(
      f'FFCV has no recipe {recipe!r}.{nearest(recipe, _RECIPES)}'
    )
  net, epochs = _RECIPES[recipe]
  name, batch_size, group, rate, decay = _NETS[net]
  config = default.get_config()
  config.batch_size = batch_size
  config.num_epochs = float(epochs)

  config.model.name = name
  config.model.dtype = 'bfloat16'
  config.model.bn_group_size = group

  config.data.image_size = 192
  config.data.size_schedule = ((0.0, 160), (float(_LARGE_FROM[epochs]), 192))
  config.data.eval_size = 256
  # The same share as a crop of 224 from 256 pixels.
  config.data.eval_resize = 293

  config.optimizer.weight_decay = decay
  config.optimizer.decay_rule = 'kernels'
  # The learning rate rises linearly until epoch 2, then falls linearly to zero.
  config.schedule.name = 'polynomial'
  config.schedule.decay_power = 1.0
  config.schedule.decay_epochs = ()
  config.schedule.learning_rate = rate
  config.schedule.base_batch_size = batch_size
  config.schedule.warmup_epochs = 2.0
  config.schedule.warmup_learning_rate = 1e-4 * rate
  config.loss.label_smoothing = 0.1
  return config
