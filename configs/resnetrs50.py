"""ResNet-RS-50 on ImageNet at 160 pixels: Bello et al. 2021, 350 epochs.

  python main.py --config=configs/resnetrs50.py --workdir=DIR

Hardware: TPUs in the paper; here eight GPUs of 80 GB. Prepare the set once
(docs/training.md).
Source: "Revisiting ResNets" (arXiv 2103.07579), as tensorflow/tpu has it in
models/official/resnet: the values are those of
resnet_rs/configs/resnetrs50_i160.yaml. The rest is from elsewhere: the
cosine and its five epochs of warm-up, from imagenet_resnetrs50_i160.yaml of
tensorflow/models, which is this recipe with another activation; Nesterov's
momentum, from an older version of the code; and zero_init_last_scale, from
resnet_model.py.
Aim: top-1 of one 160-pixel centre crop, %: 78.8, of the moving averages
(`eval_ema/top1`). timm's weights of this network reach 77.82. Not run.

What differs: our convolutions start with a normal distribution of variance
2 / fan-out, Google's with a truncated normal one of variance 1 / fan-in
(`tf.variance_scaling_initializer`). Google's RandAugment (tensorflow/tpu,
efficientnet/autoaugment.py) also uses its largest magnitude (10 of 10; ours is
30 of 30), but it has Invert, Cutout of 80 x 80 pixels and SolarizeAdd, and no
Identity. Its brightness, colour, contrast and sharpness factors are always 1.9,
ours 0.1 or 1.9; it translates by 100 pixels, we by 72; its Solarize changes no
images, ours inverts them; and it fills the border with grey, we with black.
Google decays the biases of the head and of squeeze-and-excitation, and starts
the cosine with the warm-up, we after it. It does not give the number of images
per batch norm; 128 is our choice. As in Google's code, the running statistics
are those of the last batch, and are averaged like the weights.
"""

from configs import default


def get_config():
  config = default.get_config()
  config.batch_size = 4096
  config.num_epochs = 350.0
  config.eval_every_epochs = 5.0
  config.ema_decay = 0.9999

  config.model.name = 'resnetrs50'
  config.model.dtype = 'bfloat16'
  config.model.bn_group_size = 128
  config.model.bn_momentum = 0.0
  config.model.zero_init_last_scale = True
  config.model.dropout = 0.25

  config.data.image_size = 160
  # Crop share: size / (size + 32).
  config.data.eval_resize = 192
  config.data.interpolation = 'bicubic'
  config.augment.operations = ('randaugment',)
  config.augment.magnitude = 30

  config.optimizer.nesterov = True
  config.optimizer.weight_decay = 4e-5
  config.optimizer.decay_rule = 'kernels'
  config.schedule.name = 'cosine'
  config.schedule.decay_epochs = ()
  config.schedule.warmup_epochs = 5.0
  config.loss.label_smoothing = 0.1
  return config
