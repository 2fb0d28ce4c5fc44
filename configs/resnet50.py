"""ResNet-50 on ImageNet: the 90 epochs of torchvision's references.

  python main.py --config=configs/resnet50.py --workdir=DIR

Hardware: eight GPUs of 16 GB, or one of 40 GB. Prepare the set once
(docs/training.md).
Aim: top-1 of one 224-pixel centre crop, %: 76.130 (torchvision V1); compare
75.99 (fb.resnet.torch, with colour jitter) and, with ten crops, 77.15 (He et
al. 2016, whose recipe differs, see configs/default.py). Not run.

Source: the defaults of pytorch/vision, references/classification/train.py and
presets.py, on eight GPUs with 32 images each, confirmed value by value. V1's
accuracies here and in resnet18, 34, 101 and 152 are from torchvision itself.

What differs, in these five files: torchvision computes in float32. Its head
starts with PyTorch's uniform initialisation (weights and biases of at most
1 / sqrt(2048) for this net), ours with a normal distribution of standard
deviation 0.01 and zero biases.
"""

from configs import imagenet


def get_config():
  return imagenet.get_config('resnet50')
