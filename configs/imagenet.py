"""Any network on ImageNet: the 90 epochs of torchvision's references.

  python main.py --config=configs/imagenet.py:resnet50d --workdir=DIR

`python -m resnet.tools.summary` lists the networks. configs/resnet18.py to
configs/resnet152.py use the same recipe and list the hardware and aims of these
networks. Not run.
"""

from configs import default


def get_config(name='resnet50'):
  config = default.get_config()
  config.model.name = name
  config.model.dtype = 'bfloat16'
  config.model.bn_group_size = 32
  return config
