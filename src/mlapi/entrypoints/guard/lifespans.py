"""Open the guard when its application has started."""

from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send


async def run_lifespan(
    app: ASGIApp, scope: Scope, receive: Receive, send: Send, *, on_started: Callable[[], None]
) -> None:
    """Run the lifespan of an application. Some applications, such as wrapped WSGI applications, have no lifespan.

    Args:
        app: the application. If it raises an exception or returns before it answers, it does not support lifespans
            (ASGI specification), and only ``on_started`` is called.
        scope: the scope of the lifespan.
        receive: provides the messages of the server.
        send: sends messages to the server.
        on_started: called when the application has started, before the server is notified.
    """
    has_received = has_answered = False

    async def receive_startup() -> Message:
        nonlocal has_received
        has_received = True
        return await receive()

    async def send_when_started(message: Message) -> None:
        nonlocal has_answered
        has_answered = True
        if message["type"] == "lifespan.startup.complete":
            on_started()
        await send(message)

    try:
        await app(scope, receive_startup, send_when_started)
    except Exception:
        if has_answered:
            raise
    if not has_answered:
        if not has_received:
            await receive()
        await send_when_started({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
