"""What Ray Serve's processes need beside Ray: a newer protobuf, loopback, and one request id.

Each was needed with Ray 2.55.1, the last release that goes with starlette below 1, which LLaMA-Factory needs.
"""

from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send


def read_any_protobuf() -> None:
    """Let Ray Serve read its messages by protobuf 7, whose descriptors have no `label` any more."""
    from google.protobuf.descriptor import FieldDescriptor

    if not hasattr(FieldDescriptor, "label"):
        from ray.serve._private import config

        config._proto_to_dict = _message_to_dict  # type: ignore[assignment]  # the names of parameters differ


def _message_to_dict(message: Any) -> dict[str, Any]:
    """The fields of a message as Python values; numbers and texts that are not set have their defaults."""
    values = {
        field.name: field.default_value
        for field in message.DESCRIPTOR.fields
        if field.type != field.TYPE_MESSAGE and not field.containing_oneof
    }
    for field, value in message.ListFields():
        convert = _message_to_dict if field.type == field.TYPE_MESSAGE else lambda one: one
        values[field.name] = [convert(one) for one in value] if field.is_repeated else convert(value)
    return values


def keep_grpc_on_loopback() -> None:
    """Keep the port at which a replica takes calls of other deployments on loopback.

    Ray Serve opens it on every address, without authentication, after the replica's app was built.
    """
    from grpc.aio._server import Server  # `grpc.aio.Server` is its base class

    listen = Server.add_insecure_port

    def on_loopback(server: Any, address: str) -> int:
        return listen(server, address.replace("[::]:", "127.0.0.1:"))

    Server.add_insecure_port = on_loopback  # type: ignore[method-assign]


class OneRequestID:
    """Removes the `X-Request-ID` of a response: the proxy of Ray Serve adds the same one."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_without(message: Message) -> None:
            if message["type"] == "http.response.start":
                del MutableHeaders(scope=message)["X-Request-ID"]
            await send(message)

        await self.app(scope, receive, send_without)
