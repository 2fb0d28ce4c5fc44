"""ResNet-34 on ImageNet, 90 epochs, the recipe of He et al. 2016.

  python main.py --config=configs/resnet34.py --workdir=DIR

Hardware: one GPU of 24 GB. TFDS needs the set once, see the README.
Aim: top-1 of one 224-pixel centre crop, %: 73.314 (torchvision, same recipe),
73.27 (fb.resnet.torch); the paper has 74.97 with ten crops. Not run.
"""

from configs import default


def get_config():
  config = default.get_config()
  config.model.name = 'resnet34'
  config.model.dtype = 'bfloat16'
  config.model.bn_group_size = 32
  return config
