"""ResNet-50 on ImageNet: NVIDIA's Deep Learning Examples, 50 to 250 epochs.

  python main.py --config=configs/resnet50_nvidia.py:e90 --workdir=DIR

The argument after the colon is the number of epochs: e50, e90 (the default) or
e250, which adds mixup.

Hardware: eight GPUs of 32 GB. Prepare the set once
(docs/training.md).
Source: NVIDIA DeepLearningExamples, PyTorch/Classification/ConvNets, confirmed
value by value in resnet50v1.5/training/AMP/DGX1_RN50_AMP_{50,90,250}E.sh,
main.py and the README.
Aim: top-1 of one 224-pixel centre crop, %: 76.25 +- 0.04 (e50), 77.12 +- 0.11
(e90), 78.43 +- 0.11 (e250), on eight GPUs with batch size 2,048 and mixed
precision. The result of e50 is from an older README; the current one only has
75.81 +- 0.08, on 16 GPUs with batch size 4,096. Not run.

What differs: NVIDIA changes the learning rate once per epoch, decays the bias
of the head and the batch norms of shortcuts, and initialises convolutions by
fan-in and the head with PyTorch's uniform initialisation; our head starts with
a normal distribution of standard deviation 0.01.
"""

from configs import default
from resnet.errors import InputError, nearest

_EPOCHS = {'e50': 50.0, 'e90': 90.0, 'e250': 250.0}


def get_config(length='e90'):
  if length not in _EPOCHS:
    raise InputError(
      f'NVIDIA has no recipe {length!r}.{nearest(length, _EPOCHS)}'
    )
  config = default.get_config()
  config.batch_size = 2048
  config.num_epochs = _EPOCHS[length]

  config.model.name = 'resnet50'
  config.model.dtype = 'bfloat16'
  config.model.bn_group_size = 256

  if length == 'e250':
    config.augment.mixup_alpha = 0.2

  config.optimizer.momentum = 0.875
  config.optimizer.weight_decay = 1 / 32_768
  config.optimizer.decay_rule = 'kernels'
  config.schedule.name = 'cosine'
  config.schedule.decay_epochs = ()
  config.schedule.learning_rate = 0.256
  config.schedule.warmup_epochs = 8.0
  config.loss.label_smoothing = 0.1
  return config
