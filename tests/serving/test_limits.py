"""Bodies are bounded, one by one and together."""

import asyncio

import pytest
from starlette.exceptions import HTTPException

from resnet.serving.limits import BodyLimits


def test_bodies_that_are_held_are_bounded_together():
  """Three clients send 60 bytes in six parts; two of them fit into 150."""

  async def main():
    is_held = asyncio.Event()
    sizes = []

    async def app(scope, receive, send):
      del scope, send
      size, more = 0, True
      while more:
        message = await receive()
        size += len(message['body'])
        more = message['more_body']
      sizes.append(size)
      await is_held.wait()

    limits = BodyLimits(
      app, max_bytes=100, max_held_bytes=150, max_seconds=600.0
    )

    async def request():
      parts = iter(range(6))

      async def receive():
        await asyncio.sleep(0)
        more = next(parts) < 5
        return {'type': 'http.request', 'body': b'x' * 10, 'more_body': more}

      await limits({'type': 'http', 'headers': []}, receive, None)

    tasks = [asyncio.create_task(request()) for _ in range(2)]
    while len(sizes) < 2:
      await asyncio.sleep(0)
    with pytest.raises(HTTPException, match='Too many bytes') as error:
      await request()
    assert error.value.status_code == 503
    is_held.set()
    await asyncio.gather(*tasks)
    await request()  # There is room again.
    return sizes

  assert asyncio.run(main()) == [60, 60, 60]
