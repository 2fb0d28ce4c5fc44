"""ResNet-50 on ImageNet, 90 epochs, the recipe of He et al. 2016.

  python main.py --config=configs/resnet50.py --workdir=DIR

Hardware: eight GPUs of 16 GB, or one of 40 GB. TFDS needs the set once, see
the README.
Aim: top-1 of one 224-pixel centre crop, %: 76.130 (torchvision, same recipe),
75.99 (fb.resnet.torch); the paper has 77.15 with ten crops. Not run.
"""

from configs import default


def get_config():
  config = default.get_config()
  config.model.name = 'resnet50'
  config.model.dtype = 'bfloat16'
  config.model.bn_group_size = 32
  return config
