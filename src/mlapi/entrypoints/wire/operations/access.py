"""Operations that authenticate users, check their requests, or set forgotten passwords."""

from mlapi.domain.errors import ChangeRejectedError, LinkNotFoundError, TooManyAttemptsError
from mlapi.domain.plans import RequestLimitReachedError
from mlapi.entrypoints.wire import examples, responses
from mlapi.entrypoints.wire.callers import ANYONE, USERS
from mlapi.entrypoints.wire.operation import Operation
from mlapi.entrypoints.wire.queries import VERIFY_PARAMETERS
from mlapi.entrypoints.wire.requests import PasswordLinkRequest, PasswordResetRequest
from mlapi.entrypoints.wire.responses import Message

ACCESS_OPERATIONS = (
    Operation(
        method="GET",
        path="/verify",
        name="verify",
        operation_id="verifyRequest",
        summary="For proxies: check whether a user may send a request, and count the request. Accepts every method",
        tag="Access",
        callers=USERS,
        query=tuple(VERIFY_PARAMETERS),
        success=responses.admitted(examples.ADMISSION),
        errors=(RequestLimitReachedError,),
        any_method=True,
    ),
    Operation(
        method="POST",
        path="/password-link",
        name="use_password_link",
        operation_id="usePasswordLink",
        summary="Set a password with the token of a one-time link, which revokes all tokens of the user",
        tag="Access",
        callers=ANYONE,
        cross_origin=True,
        request=PasswordLinkRequest,
        success=responses.link_used(examples.USER),
        response=responses.LinkUsed,
        errors=(LinkNotFoundError, TooManyAttemptsError, ChangeRejectedError),
    ),
    Operation(
        method="POST",
        path="/password-reset",
        name="reset_password",
        operation_id="requestPasswordReset",
        summary="Mail a password link to the users with a name or e-mail address. Needs a mail server",
        tag="Access",
        callers=ANYONE,
        cross_origin=True,
        request=PasswordResetRequest,
        success=responses.reset_requested(),
        response=Message,
        errors=(TooManyAttemptsError,),
        may_be_disabled=True,
    ),
)
