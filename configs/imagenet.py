"""Any network on ImageNet: the 90 epochs of torchvision's references.

  python main.py --config=configs/imagenet.py:resnet50d --workdir=DIR

`resnet.tools.summary` lists the networks. Hardware and aims of the plain depths
are in configs/resnet18.py to configs/resnet152.py, which are this recipe, too;
other networks were not run.
"""

from configs import default


def get_config(name='resnet50'):
  config = default.get_config()
  config.model.name = name
  config.model.dtype = 'bfloat16'
  config.model.bn_group_size = 32
  return config
