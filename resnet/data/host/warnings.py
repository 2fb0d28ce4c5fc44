"""Collects warnings about the data during a run."""

from collections.abc import Sequence

from resnet.errors import InputError


def too_many_bad_images(count: int, limit: int, last: str) -> InputError:
  """Returns the error for more broken images than `max_bad_images`."""
  return InputError(
    f'{count} broken images were found, more than data.max_bad_images={limit}.'
    f' The last one: {last} Repair the data, or allow more:'
    ' --config.data.max_bad_images=N'
  )


class DataWarnings:
  """Warnings to be printed, and the broken images found so far.

  The caller prints the warnings, so that they do not break its progress bar. At
  most `max_bad_images` different images may be left out; None allows none.
  """

  def __init__(self, max_bad_images: int | None = None):
    self.max_bad_images = max_bad_images
    self._bad_images: set[str] = set()
    self._lines: list[str] = []

  def warn(self, text: str) -> None:
    """Adds a warning."""
    self._lines.append(f'warning: {text}')

  def report_bad_images(self, bad_images: Sequence[str]) -> None:
    """Adds a warning for each image that was not reported before.

    Raises:
      InputError: more than `max_bad_images` images are broken.
    """
    for text in bad_images:
      if text not in self._bad_images:
        self._bad_images.add(text)
        self.warn(f'{text} It is left out.')
    count, limit = len(self._bad_images), self.max_bad_images or 0
    if count > limit:
      raise too_many_bad_images(count, limit, bad_images[-1])

  def take(self) -> list[str]:
    """Returns and removes all warnings, oldest first."""
    lines, self._lines = self._lines, []
    return lines
