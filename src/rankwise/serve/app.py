"""The endpoints."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import numpy as np
from fastapi import APIRouter, FastAPI, Request
from fastapi.routing import APIRoute
from numpy.typing import NDArray
from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response

from rankwise.commands.explain import explanation, variants
from rankwise.data.pairs import JOINER
from rankwise.errors import RankwiseError
from rankwise.serve import pages, problems
from rankwise.serve.answers import mean_probabilities, predictions, tei_scores
from rankwise.serve.guard import App, Guard
from rankwise.serve.lineup import Group
from rankwise.serve.messages import (
    AdapterInfo,
    AdaptersResponse,
    ClassifiedText,
    ClassifyRequest,
    ClassifyResponse,
    ClassifyUsage,
    ErrorResponse,
    ExplainedWord,
    ExplainRequest,
    ExplainResponse,
    PredictRequest,
    PredictResponse,
    ReloadResponse,
    TeiRequest,
    TeiScore,
)
from rankwise.serve.metrics import CONTENT_TYPE
from rankwise.serve.problems import Problem, of_rankwise
from rankwise.serve.queue import Logits
from rankwise.serve.service import Service, refuse_long

RENDERED_IN_LOOP = 256
"""Answers with more numbers than this are made in another thread, so that health checks do not wait."""
_TEI = TypeAdapter(list[TeiScore] | list[list[TeiScore]])


def _errors(*codes: str) -> dict[int | str, dict[str, Any]]:
    """The error responses of an endpoint, for the OpenAPI document."""
    found: dict[int | str, dict[str, Any]] = {}
    for code in codes:
        status, meaning = problems.CODES[code]
        told = found.setdefault(status, {"model": ErrorResponse, "description": ""})
        told["description"] = "; ".join(filter(None, [told["description"], f"`{code}`: {meaning}"]))
    return found


PROTECTED = ("unauthorized", "forbidden", "internal", "unavailable", "request_timeout", "too_large")
ANSWERED = (
    *("invalid_json", "unknown_adapter", "too_many_texts", "text_too_long"),
    *("invalid_request", "invalid_text", "overloaded", *PROTECTED),
)


class _Route(APIRoute):
    """A route whose endpoint takes the body, checked by its model, and the request.

    FastAPI first resolves dependencies, which no endpoint has. That takes as long as the rest of the way.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What answers a request."""
        if self.body_field is None:
            return super().get_route_handler()
        endpoint, model = self.endpoint, self.body_field.field_info.annotation
        assert isinstance(model, type) and issubclass(model, BaseModel)

        async def answer(request: Request) -> Response:
            response: Response = await endpoint(await _body(request, model), request)
            return response

        return answer


router = APIRouter(route_class=_Route)


@router.post(
    "/v1/predict",
    tags=["predict"],
    summary="Classify texts with one adapter, several, a rank, or all",
    response_model=PredictResponse,
    responses=_errors(*ANSWERED),
)
async def predict(body: PredictRequest, request: Request) -> Response:
    """Classify one text or a list of texts.

    All adapters answer from one pass over the base model. A rank averages the probabilities of its seeds.
    """
    service = _service(request)
    groups = service.select(_listed(body.adapters), _listed(body.ranks))
    texts = _joined(groups, _listed(body.texts))
    logits, tokens, seconds = await service.logits(groups, texts, request.receive)
    least = service.abstain_below if body.abstain_below is None else body.abstain_below

    def render() -> bytes:
        found = predictions(
            groups,
            [mean_probabilities(group, each) for group, each in zip(groups, logits, strict=True)],
            top_k=body.top_k,
            listed=body.probabilities,
            abstain_below=least,
        )
        base = service.lineup.base_name
        return _bytes(PredictResponse.model_construct(predictions=found, base=base, tokens=tokens))

    return _json(await _rendered(render, logits), seconds)


@router.post(
    "/v1/explain",
    tags=["predict"],
    summary="Measure which words carried a label",
    response_model=ExplainResponse,
    responses=_errors(*ANSWERED),
)
async def explain(body: ExplainRequest, request: Request) -> Response:
    """Leave out each word in turn, and measure how much of the label's probability is lost."""
    service = _service(request)
    (group,) = service.select(_listed(body.adapter))
    if group.members[0].text_columns:
        raise Problem(
            "invalid_request", "the words of a pair of texts are not explained", "name another adapter"
        )
    try:
        texts = variants(body.text)
    except RankwiseError as error:
        raise of_rankwise(error) from None
    logits, _, seconds = await service.logits([group], texts, request.receive)
    found = explanation(body.text, group.labels, mean_probabilities(group, logits[0]))
    words = [ExplainedWord(text=each.text, start=each.start, effect=each.effect) for each in found.words]
    response = ExplainResponse(
        adapter=group.name, label=found.label, probability=found.probability, words=words
    )
    return _json(_bytes(response), seconds)


@router.get(
    "/v1/adapters",
    tags=["adapters"],
    summary="List the adapters in service",
    response_model=AdaptersResponse,
    responses=_errors(*PROTECTED),
)
async def adapters(request: Request) -> Response:
    """Names, ranks, seeds and labels of the adapters in service."""
    lineup = _service(request).lineup
    listed = [
        AdapterInfo(
            name=each.name,
            rank=each.rank,
            seed=each.seed,
            labels=list(each.labels),
            text_columns=list(each.text_columns) or None,
            task=each.task.name,
            thresholds=None if each.thresholds is None else list(each.thresholds),
            label_separator=each.task.separator if each.task.several else None,
            max_length=each.max_length,
            run=each.source.run_name or None,
            report=pages.report_path(each.source),
        )
        for each in lineup.adapters.values()
    ]
    return _json(_bytes(AdaptersResponse(base=lineup.base_name, default=lineup.default, adapters=listed)))


@router.post(
    "/v1/adapters/reload",
    tags=["adapters"],
    summary="Read the adapters from disk again",
    response_model=ReloadResponse,
    responses=_errors("invalid_request", *PROTECTED),
)
async def reload(request: Request) -> Response:
    """Pick up adapters that were added, replaced or removed on disk. Needs a server with a token.

    No answer is lost, and none mixes two versions. An adapter that cannot be used leaves the old one in
    service and is listed under `failed`.
    """
    if not request.app.state.has_token:
        hint = "start the server with RANKWISE_TOKEN or --token-file"
        raise Problem("forbidden", "a reload needs a server with a token", hint)
    changes = await _service(request).reload()
    return _json(_bytes(ReloadResponse(**vars(changes))))


@router.post(
    "/classify",
    tags=["other dialects"],
    summary="vLLM's dialect",
    response_model=ClassifyResponse,
    responses=_errors(*ANSWERED),
)
async def classify(body: ClassifyRequest, request: Request) -> Response:
    """Answers like vLLM's `POST /classify`, so that its clients can move. Errors are those of this server."""
    service = _service(request)
    (group,) = service.select(_listed(body.model))
    logits, tokens, seconds = await service.logits([group], _listed(body.input), request.receive)
    scores = _scores(group, logits[0], raw=body.use_activation is False)
    data = [
        ClassifiedText(
            index=i, label=group.labels[int(row.argmax())], probs=row.tolist(), num_classes=len(row)
        )
        for i, row in enumerate(scores)
    ]
    usage = ClassifyUsage(prompt_tokens=tokens, total_tokens=tokens)
    response = ClassifyResponse(
        id=f"classify-{uuid.uuid4().hex}", created=int(time.time()), model=group.name, data=data, usage=usage
    )
    return _json(_bytes(response), seconds)


@router.post(
    "/predict",
    tags=["other dialects"],
    summary="Text Embeddings Inference's dialect",
    response_model=list[TeiScore] | list[list[TeiScore]],
    responses=_errors(*ANSWERED),
)
async def predict_like_tei(body: TeiRequest, request: Request) -> Response:
    """Answers like Text Embeddings Inference's `POST /predict`, with the default adapter.

    Texts that are too long are truncated, as in training, unless `truncate` is false.
    """
    service = _service(request)
    (group,) = service.select()
    batch = [[text] if isinstance(text, str) else text for text in _listed(body.inputs)]
    texts = [text for (text,) in batch]
    if body.truncate is False:
        await asyncio.to_thread(refuse_long, [group], texts)
    logits, _, seconds = await service.logits([group], texts, request.receive)
    scores = tei_scores(group.labels, _scores(group, logits[0], raw=body.raw_scores))
    is_batch = isinstance(body.inputs, list) and isinstance(body.inputs[0], list)
    return _json(_TEI.dump_json(scores if is_batch else scores[0]), seconds)


@router.get("/livez", tags=["operation"], summary="Whether the server works", response_model=dict[str, str])
async def livez(request: Request) -> Response:
    """Answers 503 if the model's thread has ended."""
    if not _service(request).engine.is_alive:
        raise Problem("unavailable", "the model's thread has ended", "restart the server")
    return _json(b'{"status":"ok"}')


@router.get(
    "/readyz",
    tags=["operation"],
    summary="Whether the server takes requests",
    response_model=dict[str, str],
    responses=_errors("unavailable"),
)
async def readyz(request: Request) -> Response:
    """Answers 503 while the server shuts down."""
    service = _service(request)
    if service.draining or not service.engine.is_alive:
        raise Problem("unavailable", "the server is shutting down", "use another server", retry_after=1)
    return _json(b'{"status":"ok"}')


@router.get(
    "/metrics", tags=["operation"], summary="Metrics for Prometheus", response_class=PlainTextResponse
)
async def metrics(request: Request) -> Response:
    """Requests, texts, tokens, queue, batches and latencies in Prometheus' text format."""
    return Response(_service(request).metrics.text(), media_type=CONTENT_TYPE)


def create_app(service: Service, token: str = "", *, only_local: bool = False) -> App:
    """The ASGI application.

    Args:
        service: the adapters and the engine.
        token: bearer token that requests need; empty for none.
        only_local: whether to refuse requests whose header Host names another host than this machine.
    """
    app = FastAPI(
        title="rankwise",
        description="Text classifiers: many LoRA adapters on one base model.",
        version=pages.version(),
        docs_url=None,
        redoc_url=None,
        exception_handlers={
            HTTPException: problems.on_http_error,
            Exception: problems.on_crash,
        },
    )
    app.state.service, app.state.has_token = service, bool(token)
    app.include_router(router)
    pages.add(app, service)
    return Guard(app, service, token, only_local)


async def _body(request: Request, model: type[BaseModel]) -> BaseModel:
    """The body of a request.

    Raises:
        Problem: it is not JSON, or does not match the model.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_json = kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))
    try:
        content = await request.body()
        value = json.loads(content) if content and is_json else None
    except (ValueError, RecursionError):  # also of bytes that are not UTF-8
        raise Problem("invalid_json", "the body is not valid JSON") from None
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise problems.invalid(error.errors(include_url=False)) from None


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _listed(value: Any) -> list[Any]:
    """A value that may be missing, single or a list, as a list."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _joined(groups: Sequence[Group], texts: Sequence[str | list[str]]) -> list[str]:
    """The texts, with the texts of a pair joined.

    Raises:
        Problem: there is a pair, and an adapter that takes single texts.
    """
    single = [each.name for group in groups for each in group.members if not each.text_columns]
    pairs = [number for number, text in enumerate(texts, 1) if not isinstance(text, str)]
    if single and pairs:
        what = f"text {pairs[0]} is a pair, and the adapter {single[0]} takes single texts"
        raise Problem("invalid_text", what, "send strings, or name another adapter")
    return [text if isinstance(text, str) else JOINER.join(text) for text in texts]


def _scores(group: Group, logits: Sequence[Logits], *, raw: bool) -> NDArray[np.float64]:
    """(texts, classes) logits or probabilities of one adapter."""
    return logits[0].astype(np.float64) if raw else mean_probabilities(group, logits)


async def _rendered(render: Any, logits: Sequence[Sequence[Logits]]) -> bytes:
    numbers = sum(each.size for of_group in logits for each in of_group)
    found: bytes = render() if numbers <= RENDERED_IN_LOOP else await asyncio.to_thread(render)
    return found


def _bytes(response: BaseModel) -> bytes:
    return response.model_dump_json().encode()


def _json(content: bytes, seconds: float | None = None) -> Response:
    """A response; with the seconds of the model, if it was needed (W3C, Server Timing)."""
    timing = None if seconds is None else {"Server-Timing": f"model;dur={1000 * seconds:.3f}"}
    return Response(content, headers=timing, media_type="application/json")
