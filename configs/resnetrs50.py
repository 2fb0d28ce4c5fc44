"""ResNet-RS-50 on ImageNet at 160 pixels: Bello et al. 2021, 350 epochs.

  python main.py --config=configs/resnetrs50.py --workdir=DIR

Hardware: TPUs in the paper; eight GPUs of 80 GB. TFDS needs the set once, see
the README.
Source: "Revisiting ResNets" (arXiv 2103.07579), as tensorflow/tpu has it in
models/official/resnet: resnet_rs/configs/resnetrs50_i160.yaml and the code,
confirmed value by value, but Nesterov's momentum in an older version of the
code only, and five epochs of warm-up in tensorflow/models, whose
resnet_rs_imagenet is this recipe with another activation.
Aim: top-1 of one 160-pixel centre crop, %: 78.8, of the moving averages
(`eval_ema/top1`). timm's weights of this network have 77.82. Not run.

What differs: Google's RandAugment has other operations (it inverts, cuts out,
adds to dark pixels, and knows no identity), of its largest magnitude, 10 of 10,
as ours is, 30 of 30. It decays the biases of the head and of
squeeze-and-excitation, and counts the cosine from the start, not from the end
of the warm-up. Images per batch norm are not given: 128 is our choice. Running
statistics are those of the last batch, and averaged like the weights, as there.
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
  # A crop of size / (size + 32).
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
