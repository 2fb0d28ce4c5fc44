"""ResNet-50 on ImageNet in an hour: Goyal et al. 2017, 90 epochs.

  python main.py --config=configs/resnet50_goyal.py:8192 --workdir=DIR

The argument after the colon is the batch size: 8192 (the default) or 256, the
baseline without a warm-up.

Hardware: in the paper, 256 GPUs with 32 images each (8192) or eight (256). Here
32 GPUs of 80 GB also suffice for 8192, with 256 images in eight groups on each,
and one for 256. Prepare the set once
(docs/training.md).
Source: "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour" (arXiv
1706.02677), sections 2.2, 5.1 and 5.2, confirmed value by value. Crops and
flips are those of fb.resnet.torch, without its colour augmentation.
Aim: top-1 of one 224-pixel centre crop, %: 76.26 +- 0.09 (8192), 76.40 +- 0.12
(256): means of five runs, each the median of its last five epochs (Table 1).
Not run.

What differs: the paper decays the bias of the head; we compute in bfloat16.
"""

from configs import default
from resnet.errors import InputError, nearest

# Epochs of warm-up, and its first learning rate, which the schedule multiplies
# by batch_size / 256: the run with 8,192 images starts at 0.1.
_WARMUPS = {'256': (0.0, None), '8192': (5.0, 0.1 * 256 / 8192)}


def get_config(batch='8192'):
  if batch not in _WARMUPS:
    raise InputError(
      f'There is no recipe of Goyal et al. for batches of {batch!r}.'
      f'{nearest(batch, _WARMUPS)}'
    )
  config = default.get_config()
  config.batch_size = int(batch)

  config.model.name = 'resnet50'
  config.model.dtype = 'bfloat16'
  # The same for every batch size (section 2.3).
  config.model.bn_group_size = 32
  config.model.zero_init_last_scale = True

  config.optimizer.nesterov = True
  config.optimizer.decay_rule = 'kernels'
  warmup_epochs, first_rate = _WARMUPS[batch]
  config.schedule.warmup_epochs = warmup_epochs
  config.schedule.warmup_learning_rate = first_rate
  config.schedule.decay_epochs = (30.0, 60.0, 80.0)
  return config
