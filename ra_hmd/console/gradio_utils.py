"""Helpers for Gradio that the tabs of the page share."""

import html
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import gradio as gr

from ra_hmd.core.errors import UserError
from ra_hmd.serve.batching import InferenceFailed, QueueFull, ServiceBusy, ServiceClosed

_MESSAGES = {
    QueueFull: "The model has too much to do at the moment; try again in a few seconds.",
    ServiceBusy: "The model is busy with something else; try again in a few seconds.",
    ServiceClosed: "The service is being shut down.",
    InferenceFailed: "The model or the bank failed; the log of the service says where.",
    TimeoutError: "It took too long; try again.",
}
EXPECTED_ERRORS: tuple[type[Exception], ...] = (UserError, *_MESSAGES)
"""Errors that any event handler may raise, and that are no bugs."""


def error_message(error: Exception) -> str:
    """Return one of `EXPECTED_ERRORS` as a message for the user."""
    return next((message for kind, message in _MESSAGES.items() if isinstance(error, kind)), str(error))


def upload(**options: Any) -> gr.File:
    """Create a file component whose uploads are read once and then deleted: reported memes must not stay on disk.

    Its value is the content of the file. It is no subclass, because Gradio writes a file beside the source of each.
    """
    component = gr.File(**options)

    def read_and_delete(payload: Any) -> bytes | None:
        if payload is None:
            return None
        path = Path(payload.path)
        try:
            return path.read_bytes()
        finally:
            path.unlink(missing_ok=True)

    component.preprocess = read_and_delete  # type: ignore[method-assign]  # see above
    return component


def show_errors(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap an event handler so that expected errors are shown as a message, and nothing else on the page changes."""

    @wraps(handler)
    def wrapped(*values: Any, **named: Any) -> Any:
        try:
            return handler(*values, **named)
        except EXPECTED_ERRORS as error:
            message = error_message(error)
        raise gr.Error(html.escape(message), duration=12, print_exception=False, title="Not done")

    return wrapped


def on(
    trigger: Callable[..., Any],
    handler: Callable[..., Any] | None,
    inputs: Sequence[Any] = (),
    outputs: Sequence[Any] = (),
    *,
    js: str | None = None,
) -> Any:
    """Register an event handler, without a public endpoint and without a progress overlay."""
    return trigger(
        None if handler is None else show_errors(handler),
        list(inputs),
        list(outputs),
        js=js,
        show_api=False,
        api_name=False,
        show_progress="hidden",
    )


def focus(element: str) -> str:
    """Return JavaScript that moves the keyboard focus into an element as soon as it is there."""
    return f"() => window.raFocus({element!r})"


def sentence(text: str, *, kind: str = "done") -> str:
    """Return a sentence as HTML for a live region."""
    return f'<p class="ra-said ra-{kind}">{html.escape(text)}</p>' if text else ""


def status_region(prefix: str) -> gr.HTML:
    """Create the live region in which a tab reports results, to screen readers too."""
    return gr.HTML(sentence(""), elem_id=f"{prefix}-said", elem_classes="ra-live")
