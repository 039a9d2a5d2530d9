"""Operations that report usage, changes, metrics and health."""

from mlapi.domain.errors import SearchUnavailableError, UserNotFoundError
from mlapi.entrypoints.wire import examples, reports, responses
from mlapi.entrypoints.wire.callers import ANYONE, ANYONE_IF_METRICS_ARE_OPEN, VIEWERS
from mlapi.entrypoints.wire.operation import Operation
from mlapi.entrypoints.wire.queries import AUDIT_PARAMETERS, DAYS_PARAMETERS, USAGE_PARAMETERS
from mlapi.entrypoints.wire.responses import Message

STATE_OPERATIONS = (
    Operation(
        method="GET",
        path="/users/{user_id}/usage",
        name="user_usage",
        operation_id="listUserUsage",
        summary="List the requests and units of a user per day",
        tag="Usage",
        callers=VIEWERS,
        query=tuple(DAYS_PARAMETERS),
        success=reports.user_usage([examples.USAGE], examples.USAGE.seen_datetime),
        response=reports.UserUsage,
        errors=(UserNotFoundError,),
    ),
    Operation(
        method="GET",
        path="/usage",
        name="usage",
        operation_id="listUsage",
        summary="List the requests and units of all users per day, one page at a time",
        tag="Usage",
        callers=VIEWERS,
        query=tuple(USAGE_PARAMETERS),
        success=reports.usage_page([examples.USAGE], next_page=None),
        response=reports.UsagePage,
    ),
    Operation(
        method="GET",
        path="/audit",
        name="audit",
        operation_id="listAuditEntries",
        summary="List the changes to users, newest first, one page at a time",
        tag="State",
        callers=VIEWERS,
        query=tuple(AUDIT_PARAMETERS),
        errors=(SearchUnavailableError,),
        success=reports.audit_page([examples.AUDIT_ENTRY], more=False),
        response=reports.AuditPage,
    ),
    Operation(
        method="GET",
        path="/metrics",
        name="show_metrics",
        operation_id="showMetrics",
        summary="Get the metrics in Prometheus' text format",
        tag="State",
        callers=ANYONE_IF_METRICS_ARE_OPEN,
        success=responses.metrics(b"# TYPE mlapi_requests counter\n"),
        needs_database=False,
    ),
    Operation(
        method="GET",
        path="/health/live",
        name="live",
        operation_id="isAlive",
        summary="Check whether the process responds",
        tag="State",
        callers=ANYONE,
        success=responses.alive(),
        response=Message,
        needs_database=False,
    ),
    Operation(
        method="GET",
        path="/health/ready",
        name="ready",
        operation_id="isReady",
        summary="Check whether the database accepts writes",
        tag="State",
        callers=ANYONE,
        success=responses.ready(),
        response=Message,
    ),
)
