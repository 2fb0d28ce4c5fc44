"""Requests that are too large or too slow are refused as they come in."""

import asyncio
from typing import Any

from starlette.exceptions import HTTPException


class BodyLimits:
  """ASGI middleware: bounds a body, and the bodies that are held at once."""

  def __init__(
    self, app: Any, *, max_bytes: int, max_held_bytes: int, max_seconds: float
  ):
    """Around `app`.

    Args:
      app: is asked.
      max_bytes: of a body.
      max_held_bytes: of the bodies of all requests that are not answered.
      max_seconds: that a body may take to come in.
    """
    self._app = app
    self._max_bytes = max_bytes
    self._max_held_bytes = max_held_bytes
    self._max_seconds = max_seconds
    self._held_bytes = 0

  async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
    """Handles a request; the app's `receive` raises HTTPException."""
    if scope['type'] != 'http':
      await self._app(scope, receive, send)
      return
    deadline = asyncio.get_running_loop().time() + self._max_seconds
    headers = dict(scope['headers'])
    claimed = headers.get(b'content-length', b'0')
    count, is_complete = 0, False

    async def limited() -> Any:
      nonlocal count, is_complete
      if is_complete:  # What follows is the news that the client has gone.
        return await receive()
      if claimed.isdigit() and int(claimed) > self._max_bytes:
        raise self._too_large()
      try:
        async with asyncio.timeout_at(deadline):
          message = await receive()
      except TimeoutError:
        raise HTTPException(
          408, f'The body took more than {self._max_seconds:g} s.'
        ) from None
      size = len(message.get('body', b''))
      count += size
      self._held_bytes += size
      if count > self._max_bytes:
        raise self._too_large()
      if self._held_bytes > self._max_held_bytes:
        raise HTTPException(
          503, 'Too many bytes wait already: try again.', {'Retry-After': '1'}
        )
      is_complete = not message.get('more_body', False)
      return message

    try:
      await self._app(scope, limited, send)
    finally:
      self._held_bytes -= count

  def _too_large(self) -> HTTPException:
    return HTTPException(
      413, f'A body has at most {self._max_bytes:,} bytes: send less at once.'
    )
