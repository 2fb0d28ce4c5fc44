"""ResNet-152 on ImageNet: the 90 epochs of torchvision's references.

  python main.py --config=configs/resnet152.py --workdir=DIR

Hardware: eight GPUs of 24 GB. Prepare the set once
(docs/training.md).
Aim: top-1 of one 224-pixel centre crop, %: 78.312 (torchvision V1); compare
77.84 (fb.resnet.torch, with colour jitter) and, with ten crops, 78.57 (He et
al. 2016, whose recipe differs, see configs/default.py). Not run.
"""

from configs import imagenet


def get_config():
  return imagenet.get_config('resnet152')
