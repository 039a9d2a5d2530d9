"""Handlers that report usage, changes, metrics and health."""

from functools import partial

from starlette.requests import Request

from mlapi.domain.users import utc_now
from mlapi.entrypoints.http.handlers.registry import handler
from mlapi.entrypoints.http.handlers.request_parts import get_runtime, get_user_id, parse_days, read_usage
from mlapi.entrypoints.wire import queries, reports, responses
from mlapi.entrypoints.wire.responses import Response


@handler
async def user_usage(request: Request) -> Response:
    runtime, user_id, days = get_runtime(request), get_user_id(request), parse_days(request)

    def read() -> Response:
        return read_usage(runtime.usage, runtime.users.get(user_id).id, days)

    return await runtime.executor.read_page(read)


@handler
async def usage(request: Request) -> Response:
    runtime = get_runtime(request)
    query = queries.parse_usage_query(request.scope["query_string"], today=utc_now().date())
    found = await runtime.executor.read_page(
        runtime.usage.list_page,
        first_day=query.days.first,
        last_day=query.days.last,
        after=query.after,
        limit=query.limit + 1,
    )
    rows, has_more = found[: query.limit], len(found) > query.limit
    return reports.usage_page(rows, next_page=rows[-1].position if has_more else None)


@handler
async def audit(request: Request) -> Response:
    runtime = get_runtime(request)
    query = queries.parse_audit_query(request.scope["query_string"])
    list_page = partial(
        runtime.users.list_audit_page, after=query.after, limit=query.limit + 1, matching=query.matching
    )
    executor = runtime.executor
    page = await (executor.search(request.receive, list_page) if query.is_search else executor.read_page(list_page))
    return reports.audit_page(page[: query.limit], more=len(page) > query.limit)


@handler
async def show_metrics(request: Request) -> Response:
    # Run in a thread, because this reads the metrics files of all worker processes.
    runtime = get_runtime(request)
    return responses.metrics(await runtime.executor.read_files(runtime.metrics.exposition))


@handler
async def live(_request: Request) -> Response:
    # Do not check the database: orchestrators restart processes that fail this check, which would not help.
    return responses.alive()


@handler
async def ready(request: Request) -> Response:
    runtime = get_runtime(request)
    await runtime.executor.check_ready()
    return responses.ready()
