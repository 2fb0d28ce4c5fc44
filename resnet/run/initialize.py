"""The weights that a run begins with when its config says `init_from`."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from flax import traverse_util
import jax

from resnet import weights
from resnet.errors import InputError
from resnet.experiment import Experiment
from resnet.training.lookahead import begin_at
from resnet.training.state import TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitialWeights:
  """Weights that were found to fit a run, not read yet.

  Attributes:
    source: of the weights.
    model: name of the network.
    overrides: what the config changes of it.
    new_head: the source is for another number of classes, so the head is that
      of a fresh network.
  """

  source: weights.Source
  model: str
  overrides: Mapping[str, Any]
  new_head: bool

  def apply(self, state: TrainState) -> TrainState:
    """Returns a fresh state with these weights, placed as the old ones."""
    variables = weights.read_source(self.source, self.model, **self.overrides)
    params = dict(variables['params'])
    if self.new_head:
      params['head'] = state.params['head']

    def place(new: Any, old: jax.Array) -> jax.Array:
      return jax.device_put(new, old.sharding)

    params = jax.tree.map(place, params, dict(state.params))
    state = state.replace(
      params=params,
      opt_state=begin_at(state.opt_state, params),
      batch_stats=jax.tree.map(
        place, variables['batch_stats'], dict(state.batch_stats)
      ),
    )
    return state.with_new_ema()

  def describe(self) -> str:
    """Returns a line that says where the weights are from."""
    text = f'Weights from {self.source.name}'
    if self.new_head:
      text += '; the head is new: the source is for another number of classes'
    return text


def open_weights(
  experiment: Experiment,
) -> tuple[InitialWeights, Experiment]:
  """Opens `init_from` and checks that it fits; reads no tensor.

  Returns:
    The weights, and the experiment with the mean and standard deviation that
    they were made with, where these are known and the config gives none.

  Raises:
    InputError: there are no such weights, or they do not fit.
  """
  config = experiment.config
  source = weights.open_source(config['init_from'])
  shortcut = config['model.shortcut']
  overrides = {} if shortcut is None else {'shortcut': shortcut}
  model = config['model.name']
  theirs = weights.check_source(source, model, **overrides)
  params = {'params': experiment.abstract_state().params}
  ours: dict[Any, Any] = traverse_util.flatten_dict(params)
  new_head = False
  for path, leaf in ours.items():
    if theirs[path] == leaf.shape:
      continue
    if path[1] != 'head':
      raise InputError(
        f'{"/".join(path)} in {source.name} has the shape {list(theirs[path])};'
        f' images of {experiment.image_shape[-1]} channels need'
        f' {list(leaf.shape)}.'
      )
    new_head = True
  preprocessing = source.metadata.preprocessing
  given = config['data.mean'] is not None or config['data.std'] is not None
  if preprocessing and not given:
    if len(preprocessing.mean) != experiment.image_shape[-1]:
      raise InputError(
        f'{source.name} has the mean of {len(preprocessing.mean)} channels, the'
        f' images have {experiment.image_shape[-1]}: give data.mean, data.std.'
      )
    experiment = experiment.with_statistics_of(
      {
        'mean': [255 * value for value in preprocessing.mean],
        'std': [255 * value for value in preprocessing.std],
      }
    )
  initial = InitialWeights(
    source=source, model=model, overrides=overrides, new_head=new_head
  )
  return initial, experiment
