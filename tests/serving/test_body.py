"""Bodies are bounded, one by one and together."""

import asyncio

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request

from resnet.serving.body import BodyReader


def test_total_size_of_held_bodies_is_limited():
  """Three clients send 60 bytes in six parts; two of them fit into 150."""

  async def main():
    is_held = asyncio.Event()
    sizes = []
    bodies = BodyReader(max_bytes=100, max_held_bytes=150, max_seconds=600.0)

    async def request():
      parts = iter(range(6))

      async def receive():
        await asyncio.sleep(0)
        more = next(parts) < 5
        return {'type': 'http.request', 'body': b'x' * 10, 'more_body': more}

      headers = [(b'content-type', b'image/png')]
      scope = {'type': 'http', 'headers': headers}
      async with bodies.read(Request(scope, receive)) as files:
        sizes.append(len(files[0][1]))
        await is_held.wait()

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
