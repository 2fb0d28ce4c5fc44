"""All config fields, with unit, meaning and source; the base of every config.

These defaults are not meant to be run. They are torchvision's reference version
of the ImageNet recipe of He et al. 2016, which trains for 90 epochs. The paper
differs: it crops from images with a shorter side of 256 to 480 pixels, augments
colours, and divides the learning rate when the error plateaus.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
  """Returns all fields; those with a placeholder may be None."""
  config = ConfigDict()

  # Seed of the initial weights, the data order and the augmentation.
  config.seed = 0
  # Initial weights, for fine-tuning: a .safetensors or .pth file,
  # 'hf-hub:OWNER/NAME@REVISION', a workdir or an Orbax checkpoint; None: random
  # weights. A run whose workdir has a checkpoint continues from that instead.
  config.init_from = config_dict.placeholder(str)
  # Images per update, over all devices of all processes.
  config.batch_size = 256
  # Length of the run, in passes over the training split; may be a fraction.
  config.num_epochs = 90.0
  # Micro-batches per update (gradient accumulation).
  config.accumulation_steps = 1
  # Interval between lines of metrics, updates.
  config.log_every_steps = 100
  # Interval between evaluations, epochs; the run always ends with one.
  config.eval_every_epochs = 1.0
  # Interval between checkpoints, updates; the run always ends with one.
  config.save_every_steps = 1000
  # Project of Weights & Biases to send the metrics to; None: send nothing.
  config.wandb = config_dict.placeholder(str)
  # Number of latest checkpoints to keep, besides the best. The best has the
  # highest top-1 accuracy, of the moving averages if the run keeps them.
  config.keep_checkpoints = 3
  # An update is skipped if the loss or a gradient is not finite. This many
  # skipped updates in a row end the run; --mode=replay shows the cause.
  config.max_bad_steps = 10
  # A step (or a call of several) hangs if it takes over this many seconds and
  # 50 times the median: the run then writes the stacks of its threads to the
  # workdir and exits. Compilation does not count. None: wait forever.
  config.watchdog_seconds = config_dict.placeholder(float)  # Permits None.
  config.watchdog_seconds = 600.0
  # Time to save a checkpoint after SIGTERM or Ctrl-C before the process exits,
  # seconds.
  config.preemption_grace_seconds = 30.0
  # Decay of the moving averages (EMA) of weights and batch statistics, such as
  # 0.9999 for long runs. Early updates use a smaller decay (`training.state`).
  # Evaluation reports the weights and the averages; prediction, export and
  # fine-tuning use the averages. None: no averages.
  config.ema_decay = config_dict.placeholder(float)
  # Interval between updates of the moving averages, in updates of the weights.
  config.ema_every_steps = 1
  # Updates per call of a compiled program, for small networks on GPUs and TPUs;
  # needs data.cache. A call makes one update instead where so many would pass a
  # log line, an evaluation, a save or a new image size (docs/performance.md).
  config.steps_per_call = 1

  model = config.model = ConfigDict()
  # One of resnet.models.list_models().
  model.name = 'resnet50'
  # Number of logits; None: the number of classes of the data set.
  model.num_classes = config_dict.placeholder(int)
  # Dtype of the computation, 'float32' or 'bfloat16'. Parameters are float32.
  model.dtype = 'float32'
  # Start every residual block as the identity (Goyal et al. 2017, section 5.1);
  # None: the network's default, which is False.
  model.zero_init_last_scale = config_dict.placeholder(bool)
  # Shortcut option 'A', 'B' or 'C' (He et al. 2016, Table 3), 'D' (He et al.
  # 2019) or 'none'; None: the network's default.
  model.shortcut = config_dict.placeholder(str)
  # Images per group of batch statistics; None: the whole batch. The paper and
  # torchvision compute them per device, from 32 images. A divisor of batch_size
  # / accumulation_steps / devices needs no communication between devices.
  model.bn_group_size = config_dict.placeholder(int)
  # Weight of the old running statistics in their update; None: the network's
  # default, which is 0.9 as in the paper.
  model.bn_momentum = config_dict.placeholder(float)
  # For fine-tuning: freeze the stem and this many stages, including their batch
  # statistics; None: train everything.
  model.frozen_stages = config_dict.placeholder(int)
  # For fine-tuning: batch norms use their running statistics in training too,
  # and never update them; None: False.
  model.frozen_bn = config_dict.placeholder(bool)
  # Stochastic depth (Huang et al. 2016): probability that, in training, an
  # image skips the residual of the last block; it falls linearly towards the
  # first block. None: no skipping.
  model.drop_path = config_dict.placeholder(float)
  # Dropout before the head (Srivastava et al. 2014): probability that, in
  # training, a pooled feature is dropped; None: no dropout.
  model.dropout = config_dict.placeholder(float)
  # How to compute convolutions and max-pooling: 'xla', or 'matmul' for the ways
  # of resnet/models/convolution.py and pooling.py, which are faster on CPUs.
  # None: 'matmul' on CPUs, 'xla' elsewhere. Results differ only by rounding.
  model.conv_backend = config_dict.placeholder(str)
  # Save memory, for larger batches: store only the input of each block, and
  # recompute the block in the backward pass (Chen et al. 2016); None: False.
  model.remat = config_dict.placeholder(bool)

  data = config.data = ConfigDict()
  # 'digits', 'fake', 'folder' (image files in class folders), or any TFDS
  # classification set: 'set/config:version'.
  data.name = 'imagenet2012'
  # Folder of prepared TFDS sets; None: $TFDS_DATA_DIR or ~/tensorflow_datasets.
  # For 'folder': the folder with train/CLASS/FILE and val/CLASS/FILE.
  data.data_dir = config_dict.placeholder(str)
  # TFDS splits: 'train', 'train[:90%]', ...; for 'folder': names of subfolders.
  data.train_split = 'train'
  data.eval_split = 'validation'
  # Side of the network's square input images, pixels.
  data.image_size = 224
  # Progressive resizing in training (Howard 2018; Tan and Le 2021, section 4):
  # pairs (first epoch, size in pixels from then on). Epochs rise from 0, and
  # sizes rise to image_size. FFCV's 88 epochs: ((0.0, 160), (71.0, 192)).
  # (): image_size in all epochs.
  data.size_schedule = ()
  # Side of the images in evaluation, pixels (FixRes, Touvron et al. 2019);
  # None: image_size.
  data.eval_size = config_dict.placeholder(int)
  # Training crop: 'random_resized' (Szegedy et al. 2015), 'pad' (He et al.
  # 2016, section 4.2) or 'none'.
  data.crop = 'random_resized'
  # For 'random_resized': range of the crop's area as a share of the image.
  data.crop_area = (0.08, 1.0)
  # For 'random_resized': range of the crop's width / height.
  data.crop_aspect = (3 / 4, 4 / 3)
  # For 'pad': width of the zero padding on each side, pixels.
  data.crop_padding = 4
  # Mirror half of the training images.
  data.flip = True
  # Repeated augmentation (Hoffer et al. 2020): copies of each image in a batch,
  # cropped and augmented differently. An epoch has as many steps as without.
  data.repeats = 1
  # In evaluation, the shorter side is resized to this many pixels before the
  # centre is cropped.
  data.eval_resize = 256
  # Interpolation of resizing: 'bilinear' or 'bicubic', with antialiasing as in
  # torchvision.
  data.interpolation = 'bilinear'
  # Where training images are cropped and flipped: 'host', or 'device' if the
  # host has too few cores; 'device' needs images stored in one size
  # (resnet.tools.prepare --raw).
  data.augment_on = 'host'
  # 'device': keep the pixels of both splits on every device, for sets that fill
  # at most half of its free memory. The host then sends indices, not images.
  # Needs augment_on='device', and does not change the batches. None: read
  # images as they are needed.
  data.cache = config_dict.placeholder(str)
  # Mean and standard deviation of each channel, for pixels from 0 to 255; None:
  # those of init_from, else published, else measured on 1,024 training images.
  data.mean = config_dict.placeholder(tuple)
  data.std = config_dict.placeholder(tuple)
  # Worker processes that read data; 0: read in the main process.
  data.num_workers = 0
  # Threads per process that reads data.
  data.num_threads = 8
  # Batches to read ahead, per process that reads data.
  data.prefetch_batches = 8
  # What to do with an image that cannot be decoded: 'error' ends the run;
  # 'skip' uses the next record instead in training, and none in evaluation.
  data.on_bad_image = 'error'
  # For 'skip': number of different images that each process may skip; one more
  # ends the run.
  data.max_bad_images = 100
  # Number of times to replace worker processes that died, for example because
  # memory ran out. The count starts again in each evaluation.
  data.max_worker_restarts = 0

  # Augmentation on the device, after crop and flip, whatever data.augment_on
  # is; see docs/recipes.md.
  augment = config.augment = ConfigDict()
  # Operations in the order in which they are applied: 'randaugment',
  # 'trivialaugment_wide', 'autoaugment_imagenet', 'autoaugment_cifar',
  # 'color_jitter', 'lighting'; and 'erasing', which must be last.
  augment.operations = ()
  # For 'randaugment' (Cubuk et al. 2020): number of operations per image, and
  # their magnitude, 0 to 30.
  augment.num_layers = 2
  augment.magnitude = 9
  # For 'randaugment', as in timm: standard deviation of the magnitude, which is
  # drawn for each operation (3 here is 1 in timm, whose magnitudes end at 10),
  # and probability of applying an operation.
  augment.magnitude_std = 0.0
  augment.operation_probability = 1.0
  # Interpolation of shears, translations and rotations: 'nearest' or
  # 'bilinear'.
  augment.interpolation = 'nearest'
  # For 'color_jitter': strengths s of brightness, contrast and saturation,
  # whose factors are uniform in [1 - s, 1 + s]. The values are
  # fb.resnet.torch's.
  augment.jitter = (0.4, 0.4, 0.4)
  # For 'lighting': standard deviation of the weights of the principal
  # components (Krizhevsky et al. 2012, section 4.1).
  augment.lighting = 0.1
  # For 'erasing' (Zhong et al. 2020): probability that an image is erased.
  augment.erase_probability = 0.25
  # For 'erasing': range of the erased area as a share of the image.
  augment.erase_area = (0.02, 1 / 3)
  # For 'erasing': range of height / width of the erased area.
  augment.erase_aspect = (0.3, 10 / 3)
  # For 'erasing': the new content, 'noise' per pixel or the 'mean' colour.
  augment.erase_fill = 'noise'
  # Mixup (Zhang et al. 2018) and cutmix (Yun et al. 2019) mix images with
  # weights from Beta(alpha, alpha); an alpha of 0 switches it off.
  augment.mixup_alpha = 0.0
  augment.cutmix_alpha = 0.0
  # Probability that a group is mixed and, if both mixup and cutmix are on, that
  # a mixed group uses cutmix.
  augment.mix_probability = 1.0
  augment.cutmix_share = 0.5
  # Images per group of neighbours in the batch, which are mixed with each other
  # with one weight; None: model.bn_group_size or, if that is None, the whole
  # batch. timm and torchvision mix within the batch of a process. A divisor of
  # batch_size / devices needs no communication between devices.
  augment.mix_group_size = config_dict.placeholder(int)

  # The mesh of all devices of all processes: data x fsdp. Both axes split the
  # batch.
  sharding = config.sharding = ConfigDict()
  # Number of replicas of the state; None: number of devices / fsdp.
  sharding.data = config_dict.placeholder(int)
  # Number of devices that kernels and their optimizer state are split over
  # (ZeRO, Rajbhandari et al. 2020): less memory, more communication.
  sharding.fsdp = 1

  optimizer = config.optimizer = ConfigDict()
  # 'sgd'; 'sgdw' or 'adamw', with decoupled weight decay (Loshchilov and Hutter
  # 2019); for batches of 8,192 and more 'lars' (You et al. 2017) or 'lamb' (You
  # et al. 2020), which need decay_rule='kernels'.
  optimizer.name = 'sgd'
  # Momentum; for 'adamw' and 'lamb', the decay of the first moment (b1).
  optimizer.momentum = 0.9
  # Use Nesterov's momentum. The paper uses classical momentum.
  optimizer.nesterov = False
  # For 'lars': coefficient of norm(kernel) / norm(gradient), eta in the paper.
  optimizer.trust_coefficient = 0.001
  # For 'adamw' and 'lamb': decay of the second moment, and the number added to
  # its square root.
  optimizer.b2 = 0.999
  optimizer.eps = 1e-6
  # Weight decay: for 'sgd' and 'lars', added to the gradient (L2); for 'sgdw',
  # 'adamw' and 'lamb', added to the update (decoupled).
  optimizer.weight_decay = 1e-4
  # Parameters that decay: 'all' (He et al. 2016) or 'kernels' (Goyal et al.
  # 2017).
  optimizer.decay_rule = 'all'
  # Largest global norm of the gradients, to which they are clipped (Pascanu et
  # al. 2013); None: no clipping.
  optimizer.clip_norm = config_dict.placeholder(float)
  # Adaptive clipping (Brock et al. 2021: 0.01 for batches of 4,096): largest
  # ratio of gradient norm to weight norm, per output channel, except in the
  # head; None: no clipping.
  optimizer.clip_adaptive = config_dict.placeholder(float)
  # Sharpness-aware minimization (SAM, Foret et al. 2021: 0.05): distance from
  # the weights, in the global norm, at which the gradients are
  # computed. Doubles the work. None: plain gradients.
  optimizer.sam_rho = config_dict.placeholder(float)
  # For fine-tuning: factor, 0 to 1, of the learning rate of all parameters
  # except those of the head.
  optimizer.backbone_multiplier = 1.0

  schedule = config.schedule = ConfigDict()
  # 'step' (He et al. 2016), 'cosine' (Loshchilov and Hutter 2017), 'polynomial'
  # (MLPerf, You et al. 2017), 'one_cycle' (Smith and Topin 2018) or 'wsd'
  # (warm-up, stable, decay: Hu et al. 2024). The formulas are in
  # resnet/training/schedules.py.
  schedule.name = 'step'
  # Peak learning rate for batches of base_batch_size images. All learning rates
  # are multiplied by batch_size / base_batch_size.
  schedule.learning_rate = 0.1
  schedule.base_batch_size = 256
  # Length of the linear warm-up (Goyal et al. 2017, section 2.2), epochs; may
  # be a fraction. For 'one_cycle', length of the rise.
  schedule.warmup_epochs = 0.0
  # Learning rate of the first step of the warm-up, for batches of
  # base_batch_size images; None: the peak / number of warm-up steps.
  schedule.warmup_learning_rate = config_dict.placeholder(float)
  # For 'step': epochs after which the learning rate is multiplied by
  # decay_factor.
  schedule.decay_epochs = (30.0, 60.0)
  schedule.decay_factor = 0.1
  # For 'polynomial' and the cool-down of 'wsd': exponent of the decay; 1 is
  # linear.
  schedule.decay_power = 2.0
  # For 'cosine', 'polynomial' and 'wsd': learning rate at the end, for batches
  # of base_batch_size images.
  schedule.final_learning_rate = 0.0
  # Length of the cool-down at the end, epochs. 'wsd' decays during it;
  # 'cosine' and 'polynomial' stay at final_learning_rate.
  schedule.cooldown_epochs = 0.0

  loss = config.loss = ConfigDict()
  # Training loss: 'cross_entropy', or 'binary_cross_entropy' per class
  # (Wightman et al. 2021). The loss of evaluation is always plain cross
  # entropy.
  loss.name = 'cross_entropy'
  # Label smoothing (Szegedy et al. 2016), 0 to 1; 0: none.
  loss.label_smoothing = 0.0
  # For 'binary_cross_entropy': targets become 1 above this probability and 0
  # otherwise; None: the targets are the probabilities themselves, which are
  # fractions after smoothing, mixup or cutmix.
  loss.target_threshold = config_dict.placeholder(float)
  # For 'binary_cross_entropy': 'mean' or 'sum' over the classes.
  loss.reduction = 'mean'

  return config.lock()
