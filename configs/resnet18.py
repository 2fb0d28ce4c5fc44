"""ResNet-18 on ImageNet, 90 epochs, the recipe of He et al. 2016.

  python main.py --config=configs/resnet18.py --workdir=DIR

Hardware: one GPU of 24 GB. TFDS needs the set once, see the README.
Aim: top-1 of one 224-pixel centre crop, %: 69.758 (torchvision, same recipe),
69.57 (fb.resnet.torch); the paper has 72.12 with ten crops. Not run.
"""

from configs import default


def get_config():
  config = default.get_config()
  config.model.name = 'resnet18'
  config.model.dtype = 'bfloat16'
  config.model.bn_group_size = 32
  return config
