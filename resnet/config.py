"""Parses the flags --config and --config.FIELD and explains their errors."""

import ast
from collections.abc import Sequence
import contextlib
import functools
import json
import os
import pathlib
import re
from typing import Any

from absl import flags
from ml_collections import config_flags

from resnet.errors import InputError

_CONFIGS = pathlib.Path(__file__).parents[1] / 'configs'
_IN_FILE = 'Error whilst parsing config file'


def with_default(argv: Sequence[str]) -> list[str]:
  """Adds --config=configs/digits.py to a command line without --config."""
  if any(arg.lstrip('-').split('=')[0] == 'config' for arg in argv):
    return list(argv)
  # As the flag's default, the file would be loaded before flags are parsed.
  return [*argv[:1], f'--config={_CONFIGS / "digits.py"}', *argv[1:]]


def split_none(argv: Sequence[str]) -> tuple[list[str], list[str]]:
  """Returns a command line without --config.FIELD=None flags, and their fields.

  A config file can set a field to None, but the flags of ml_collections cannot.
  """
  rest, is_none, args = [], {}, list(argv)
  while args:
    arg = args.pop(0)
    flag, equals, value = arg.partition('=')
    field = re.fullmatch(r'--?config\.([\w.]+)', flag)
    if field and not equals and args[:1] == ['None']:  # '--config.FIELD None'
      value = args.pop(0)
    if field:
      is_none[field[1]] = value == 'None'  # The last flag of a field counts.
    if not field or value != 'None':
      rest.append(arg)
  return rest, [name for name, value in is_none.items() if value]


def set_none(config: Any, fields: Sequence[str]) -> None:
  """Sets fields of a `ConfigDict` to None."""
  for field in fields:
    *sections, name = field.split('.')
    section = functools.reduce(getattr, sections, config)
    getattr(section, name)  # For an unknown name, raises with a suggestion.
    with section.ignore_type():
      setattr(section, name, None)
  _ = config.seed  # A config file that failed to load raises here.


def read(argv: Sequence[str]) -> tuple[Any, str]:
  """Returns the config of a command line, and the path of its config file.

  Raises:
    InputError: a flag or the config file is wrong.
  """
  argv, none_fields = split_none(with_default(argv))
  values = flags.FlagValues()
  config = config_flags.DEFINE_config_file(
    'config', flag_values=values, sys_argv=argv
  )
  try:
    rest = values(argv)
    set_none(config.value, none_fields)
  except SystemExit:
    raise InputError('The config file ended the program.') from None
  except Exception as error:  # A config file can raise any exception.
    raise InputError(explain(error)) from None
  if len(rest) > 1:
    raise InputError(f'{rest[1]!r} is not a flag; flags begin with --.')
  if not flags.FLAGS.is_parsed():
    flags.FLAGS(argv[:1])  # Grain's worker processes need parsed flags.
  return config.value, config_flags.get_config_filename(values['config'])


def flatten(config: Any) -> dict[str, Any]:
  """Returns the fields by dotted name, with lists instead of tuples."""
  flat = {}  # Without Flax: importing it takes longer than printing --help.
  for name, value in json.loads(config.to_json()).items():
    section = value if isinstance(value, dict) else {None: value}
    flat |= {f'{name}.{key}' if key else name: v for key, v in section.items()}
  return flat


def changed(config: Any, fields: str) -> Any:
  """Returns a copy of a `ConfigDict`, changed by 'FIELD=VALUE FIELD=VALUE'."""
  config = config.copy_and_resolve_references()
  for field in fields.split():
    name, equals, value = field.partition('=')
    if not equals:
      raise InputError(f'--also={fields!r}: {field!r} is not FIELD=VALUE.')
    with contextlib.suppress(ValueError, SyntaxError):
      value = ast.literal_eval(value)  # Otherwise it stays a string.
    try:
      config.update_from_flattened_dict({name: value})
    except (KeyError, TypeError, ValueError) as error:
      raise InputError(f'--also={fields!r}: {error}') from None
  return config


def explain(error: Exception) -> str:
  """Explains an error of the flags or the config file in one line."""
  cause = error
  # ml_collections, and then absl, wrap the exception of a config file.
  while _IN_FILE in str(cause) and cause.__context__:
    cause = cause.__context__
  if isinstance(cause, InputError):
    return str(cause)
  # If calling config() itself failed, the traceback does not enter the file.
  is_call = cause.__traceback__ and not cause.__traceback__.tb_next
  if is_call and 'config() takes 0 positional arguments' in str(cause):
    given = str(error).partition(f': {_IN_FILE}')[0].removeprefix('flag ')
    return (
      f'{given}: this config takes no argument after the colon: type'
      f' {given.partition(":")[0]}'
    )
  if isinstance(error, (AttributeError, KeyError)):
    # The innermost message of ml_collections lists the nearest field.
    cause = error
    while isinstance(cause, Exception) and cause.args:
      cause = cause.args[0]
    what = 'There is no config field'
    if ' has no attribute ' in str(cause):
      what = 'The config file is not valid:'
    return f'{what} {cause}'
  if isinstance(error, OSError) and (
    missing := re.search(r'Attempted.*?: \'?([^\s\']+\.py)', str(error), re.S)
  ):
    return f'There is no config file {missing[1]}.'
  # The last line of a traceback is its exception.
  message, _, trace = str(error).partition('Traceback')
  last_line = trace.strip().rpartition('\n')[2].strip()
  kind = '' if isinstance(error, flags.Error) else f'{type(error).__name__}:'
  return f'{kind} {message} {last_line}'


def default_workdir(path: str) -> str:
  """Returns 'runs/<config name>', or the workdir of 'saved.py:WORKDIR'."""
  path, _, argument = path.partition(':')
  stem = os.path.splitext(os.path.basename(path))[0]
  if stem == 'saved':
    return argument
  argument = re.sub(r'[^\w.-]+', '_', argument).strip('._')
  return os.path.join('runs', f'{stem}_{argument}' if argument else stem)
