"""ResNet-50 on ImageNet: NVIDIA's Deep Learning Examples, 50 to 250 epochs.

  python main.py --config=configs/resnet50_nvidia.py:e90 --workdir=DIR

The part after the colon is the length: e50, e90 (the default) or e250, which
adds mixup.

Hardware: eight GPUs of 32 GB. TFDS needs the set once, see the README.
Source: NVIDIA DeepLearningExamples, PyTorch, ResNet50 v1.5, "Default
configuration".
Aim: top-1 of one 224-pixel centre crop, %: 75.81 +- 0.08 (e50), 77.12 +- 0.11
(e90), 78.43 +- 0.11 (e250). Not run.
"""

from configs import default

_EPOCHS = {'e50': 50.0, 'e90': 90.0, 'e250': 250.0}


def get_config(length='e90'):
  if length not in _EPOCHS:
    raise ValueError(f'{length!r} is none of {", ".join(_EPOCHS)}.')
  config = default.get_config()
  config.batch_size = 2048
  config.num_epochs = _EPOCHS[length]

  config.model.name = 'resnet50'
  config.model.dtype = 'bfloat16'
  config.model.bn_group_size = 256
  config.model.zero_init_last_scale = True

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
