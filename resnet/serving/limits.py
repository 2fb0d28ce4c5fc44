"""Requests that are too large or too slow are refused as they come in."""

import asyncio
from typing import Any

from starlette.exceptions import HTTPException


class BodyLimits:
  """ASGI middleware: bounds the size of a body and the time it may take."""

  def __init__(self, app: Any, *, max_bytes: int, max_seconds: float):
    """Around `app`."""
    self._app = app
    self._max_bytes = max_bytes
    self._max_seconds = max_seconds

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
      count += len(message.get('body', b''))
      if count > self._max_bytes:
        raise self._too_large()
      is_complete = not message.get('more_body', False)
      return message

    await self._app(scope, limited, send)

  def _too_large(self) -> HTTPException:
    return HTTPException(
      413, f'A body has at most {self._max_bytes:,} bytes: send less at once.'
    )
