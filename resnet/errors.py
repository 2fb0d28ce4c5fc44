"""Errors that end a program with one line instead of a traceback."""

from collections.abc import Iterable
import difflib
import os
import re


class InputError(ValueError):
  """Bad input; `main` prints it as one line on stderr and exits with 2.

  The message says what is wrong, the value, what was expected, and what to type
  instead.
  """


class RunError(Exception):
  """The run cannot continue, through no fault of the input or the program.

  `main` prints it as one line on stderr and exits with 1. The message says what
  happened, the likely cause, and what to type instead.
  """


def nearest(name: str, names: Iterable[str]) -> str:
  """Returns ' Did you mean: a, b?', else all names if there are at most 30."""
  names = sorted(names)
  same = [other for other in names if _letters(other) == _letters(name)]
  longer = [other for other in names if name and other.startswith(name)]
  # The time of difflib is a second for some thousand similar names.
  few = names if len(names) < 1000 else []
  near = difflib.get_close_matches(name, few, n=3, cutoff=0.6)
  close = list(dict.fromkeys([*same, *longer, *near]))[:3]
  if close:
    return f' Did you mean: {", ".join(close)}?'
  if not names or len(names) > 30:
    return ''
  return f' There are: {", ".join(names)}.'


def _letters(name: str) -> str:
  """Returns 'cifar10' for 'CIFAR-10': letters and digits in lower case."""
  return re.sub('[^a-z0-9]', '', name.lower())


def reason_of(error: Exception) -> str:
  """Returns the first line of an error, without the path of an OSError."""
  # The text of a KeyError is only the key.
  text = repr(error) if isinstance(error, KeyError) else str(error)
  text = getattr(error, 'strerror', None) or text
  return text.partition('\n')[0] or repr(error)


def readable(name: str | bytes) -> str:
  """Returns a file name as text; bytes that are not UTF-8 become '\\xNN'."""
  return os.fsencode(name).decode(errors='backslashreplace')
