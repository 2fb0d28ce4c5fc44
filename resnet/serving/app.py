"""The web application: a page, POST /predict, /healthz and /metrics."""

import asyncio
import base64
from collections.abc import AsyncIterator
import contextlib
import pathlib
from typing import Any

import cv2
import numpy as np
import prometheus_client as prometheus
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from resnet.inference.predictor import Predictor
from resnet.inference.preprocessing import ImageTransform, overlay
from resnet.serving.batcher import Batcher
from resnet.serving.body import BodyReader

_PAGE = pathlib.Path(__file__).parent / 'page'
_TOP = 5
# Larger images are refused, to bound the memory of concurrent requests.
MAX_PIXELS = 2**25
_MAX_BYTES = 10_000_000  # The largest body.
# The page may load nothing from other hosts.
_PAGE_HEADERS = {
  'Content-Security-Policy': "default-src 'self'; img-src 'self' data: blob:",
  'X-Content-Type-Options': 'nosniff',
  'Cache-Control': 'no-cache',
}


class Server:
  """Answers requests with the predictions of a network."""

  def __init__(
    self,
    predictor: Predictor,
    *,
    wait_seconds: float,
    max_waiting: int,
    max_seconds: float,
  ):
    """Creates the server; `predictor` must be compiled.

    Args:
      predictor: returns 'probabilities' and, if available, 'cam'.
      wait_seconds: how long a batch waits for more images after the first.
      max_waiting: number of images that may wait; more are refused.
      max_seconds: how long a body may take to arrive.
    """
    self._network = predictor.network
    self._transform = ImageTransform(
      preprocessing=predictor.network.preprocessing, max_pixels=MAX_PIXELS
    )
    self._max_waiting = max_waiting
    self._waiting = 0
    self._bodies = BodyReader(
      max_bytes=_MAX_BYTES,
      max_held_bytes=32 * _MAX_BYTES,
      max_seconds=max_seconds,
    )
    self._registry = prometheus.CollectorRegistry()
    shared = {'registry': self._registry, 'namespace': 'resnet'}
    self._requests = prometheus.Counter(
      'requests', 'Requests to /predict by status', ['status'], **shared
    )
    self._seconds = prometheus.Histogram(
      'request_seconds', 'Time to answer a /predict request', **shared
    )
    sizes = prometheus.Histogram(
      'batch_images',
      'Images predicted at once',
      buckets=(1, 2, 4, 8, 16, 32, 64),
      **shared,
    )
    gauge = prometheus.Gauge('waiting_images', 'Images waiting', **shared)
    gauge.set_function(lambda: self._waiting)
    self._batcher = Batcher(
      predict=predictor,
      max_batch=predictor.batch_sizes[-1],
      wait_seconds=wait_seconds,
      on_batch=sizes.observe,
    )

  @property
  def num_requests(self) -> int:
    """Number of requests to /predict that were answered."""
    samples = next(iter(self._requests.collect())).samples
    return int(sum(x.value for x in samples if x.name.endswith('_total')))

  @contextlib.asynccontextmanager
  async def lifespan(self, app: Any) -> AsyncIterator[None]:
    """Runs the batcher; at shutdown, accepted requests are answered first."""
    del app
    cv2.setNumThreads(0)  # Each image has a thread already.
    self._batcher.start()
    yield
    await self._batcher.close()

  async def predict(self, request: Request) -> Response:
    """POST /predict: an image, or several as multipart/form-data."""
    status = 500
    with self._seconds.time():
      try:
        response = JSONResponse(await self._answer(request))
        status = response.status_code
        return response
      except HTTPException as error:
        status = error.status_code
        raise
      finally:
        self._requests.labels(status).inc()

  async def _answer(self, request: Request) -> dict[str, Any]:
    self._admit(1)  # Refuse before reading the body.
    count = 1
    try:
      async with self._bodies.read(request) as files:
        if len(files) > self._max_waiting:
          text = f'A request may have at most {self._max_waiting} images.'
          raise HTTPException(413, text)
        self._admit(len(files) - 1)
        count = len(files)
        return {'images': await self._predict(request, files)}
    finally:
      self._waiting -= count

  async def _predict(
    self, request: Request, files: list[tuple[str, bytes]]
  ) -> list[dict[str, Any]]:
    images = await asyncio.gather(
      *(asyncio.to_thread(self._decode, name, data) for name, data in files)
    )
    rows = await self._batcher(images)
    wants_map = request.query_params.get('map') == '1' and 'cam' in rows[0]
    answers = []
    for (name, _), image, row in zip(files, images, rows, strict=True):
      probabilities = row['probabilities']
      if not np.all(np.isfinite(probabilities)):  # JSON cannot express NaN.
        text = 'The logits are not finite: the weights are damaged.'
        raise HTTPException(500, text)
      classes = self._network.top_classes(probabilities, _TOP)
      answer: dict[str, Any] = {'file': name, 'classes': classes}
      if wants_map:
        png = await asyncio.to_thread(overlay, image, row['cam'])
        data = base64.b64encode(png).decode()
        answer['map'] = f'data:image/png;base64,{data}'
      answers.append(answer)
    return answers

  def _admit(self, count: int) -> None:
    if self._waiting + count > self._max_waiting:
      text = f'{self._waiting} images are waiting: try again later.'
      raise HTTPException(503, text, {'Retry-After': '1'})
    self._waiting += count

  def _decode(self, name: str, data: bytes) -> np.ndarray:
    try:
      return self._transform(data)[0]
    except ValueError as error:
      status = 413 if 'the header claims' in str(error) else 400
      text = f'{name or "The body"} cannot be decoded: {error}.'
      raise HTTPException(status, text) from None

  async def healthz(self, request: Request) -> Response:
    """GET /healthz."""
    del request
    # Not the network's name, which may be a path on this machine.
    network = self._network
    facts = {'network': network.model_name, 'classes': len(network.class_names)}
    return JSONResponse({'status': 'ok', **facts})

  async def metrics(self, request: Request) -> Response:
    """GET /metrics, in Prometheus's text format."""
    del request
    return Response(
      prometheus.generate_latest(self._registry),
      media_type=prometheus.CONTENT_TYPE_LATEST,
    )


def create_app(server: Server) -> Starlette:
  """Returns the ASGI application of a server."""
  return Starlette(
    routes=[
      *(Route(path, _page) for path in ('/', '/page.css', '/page.js')),
      Route('/predict', server.predict, methods=['POST']),
      Route('/healthz', server.healthz),
      Route('/metrics', server.metrics),
    ],
    lifespan=server.lifespan,
    exception_handlers={HTTPException: _error, Exception: _error},
  )


async def _page(request: Request) -> Response:
  name = request.url.path.removeprefix('/') or 'index.html'
  return FileResponse(_PAGE / name, headers=_PAGE_HEADERS)


async def _error(request: Request, error: Any) -> Response:
  del request
  return JSONResponse(
    {'error': ' '.join(str(getattr(error, 'detail', 'server error')).split())},
    status_code=getattr(error, 'status_code', 500),
    headers=getattr(error, 'headers', None),
  )
