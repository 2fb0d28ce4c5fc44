"""Warnings about the data during a run."""

from collections.abc import Sequence

from resnet.errors import InputError


def too_many_bad_images(count: int, limit: int, last: str) -> InputError:
  """Returns the error of a run that has left out enough images."""
  return InputError(
    f'{count} broken images were met, more than data.max_bad_images={limit}.'
    f' The last one: {last} Repair the data, or allow more:'
    ' --config.data.max_bad_images=N'
  )


class DataWarnings:
  """Warnings that wait to be shown, and the broken images met so far.

  Workers have no screen, and a bar may be on that of the main process: so
  lines are kept here until the loop takes them. At most `max_bad_images`
  different images may be left out; None: none.
  """

  def __init__(self, max_bad_images: int | None = None):
    self.max_bad_images = max_bad_images
    self._bad_images: set[str] = set()
    self._lines: list[str] = []

  def warn(self, text: str) -> None:
    """Keeps a warning."""
    self._lines.append(f'warning: {text}')

  def report_bad_images(self, bad_images: Sequence[str]) -> None:
    """Warns of each image that was not met before: a sentence that names it."""
    for text in bad_images:
      if text not in self._bad_images:
        self._bad_images.add(text)
        self.warn(f'{text} It is left out.')
    count, limit = len(self._bad_images), self.max_bad_images or 0
    if count > limit:
      raise too_many_bad_images(count, limit, bad_images[-1])

  def take(self) -> list[str]:
    """Returns the lines that were not taken yet, oldest first."""
    lines, self._lines = self._lines, []
    return lines
