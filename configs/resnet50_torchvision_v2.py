"""ResNet-50 on ImageNet: torchvision's second weights, 600 epochs.

  python main.py --config=configs/resnet50_torchvision_v2.py --workdir=DIR

Hardware: eight GPUs of 16 GB, or one of 80 GB. Prepare the set once
(docs/training.md).
Source: the recipe of `ResNet50_Weights.IMAGENET1K_V2`: Vryniotis 2021, "How to
train state-of-the-art models using torchvision's latest primitives", and
torchvision's issue 3995. Confirmed value by value in transcriptions of its
command and in references/classification/train.py and presets.py; accuracy and
eval_resize are confirmed in torchvision itself.
Aim: top-1 of one 224-pixel centre crop, %: 80.858, of the moving averages
(`eval_ema/top1`). Not run.

What differs: torchvision's head starts with PyTorch's uniform initialisation
(weights and biases of at most 1 / sqrt(2048)), ours with a normal distribution
of standard deviation 0.01 and zero biases. torchvision decays the bias of the
head and changes the learning rate once per epoch, and its moving averages equal
the weights until the warm-up is over.
"""

from configs import default


def get_config():
  config = default.get_config()
  config.batch_size = 1024
  config.num_epochs = 600.0
  config.eval_every_epochs = 5.0
  # --model-ema-decay=0.99998, which torchvision scales by batch size, interval
  # and epochs.
  config.ema_every_steps = 32
  config.ema_decay = 1 - 2e-5 * 1024 * 32 / 600

  config.model.name = 'resnet50'
  config.model.dtype = 'bfloat16'
  config.model.bn_group_size = 128

  config.data.image_size = 176
  config.data.eval_size = 224
  config.data.eval_resize = 232
  config.data.repeats = 4
  config.augment.operations = ('trivialaugment_wide', 'erasing')
  config.augment.interpolation = 'bilinear'
  config.augment.erase_probability = 0.1
  config.augment.erase_area = (0.02, 0.33)
  config.augment.erase_aspect = (0.3, 3.3)
  config.augment.erase_fill = 'mean'
  config.augment.mixup_alpha = 0.2
  config.augment.cutmix_alpha = 1.0

  config.optimizer.weight_decay = 2e-5
  config.optimizer.decay_rule = 'kernels'
  config.schedule.name = 'cosine'
  config.schedule.decay_epochs = ()
  config.schedule.learning_rate = 0.5
  config.schedule.base_batch_size = 1024
  config.schedule.warmup_epochs = 5.0
  # --lr-warmup-decay=0.01.
  config.schedule.warmup_learning_rate = 0.005
  config.loss.label_smoothing = 0.1
  return config
