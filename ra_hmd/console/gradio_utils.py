"""Small pieces that the tabs of the page share."""

import html
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import gradio as gr

from ra_hmd.core.errors import UserError
from ra_hmd.serve.batching import InferenceFailed, QueueFull, ServiceBusy, ServiceClosed

_SAID = {
    QueueFull: "The model has too much to do at the moment; try again in a few seconds.",
    ServiceBusy: "The model is busy with something else; try again in a few seconds.",
    ServiceClosed: "The service is being shut down.",
    InferenceFailed: "The model or the bank failed; the log of the service says where.",
    TimeoutError: "It took too long; try again.",
}
EXPECTED_ERRORS = (UserError, *_SAID)
"""What may come of any act, and is no bug."""


def error_message(error: Exception) -> str:
    """One of `EXPECTED_ERRORS`, for a person."""
    return next((words for kind, words in _SAID.items() if isinstance(error, kind)), str(error))


def upload(**how: Any) -> gr.File:
    """A file that is read once and then deleted: what people report must not stay on a disk.

    Its value is the content. No class of its own: for such Gradio writes a file beside the source.
    """
    component = gr.File(**how)

    def read_and_delete(payload: Any) -> bytes | None:
        if payload is None:
            return None
        path = Path(payload.path)
        try:
            return path.read_bytes()
        finally:
            path.unlink(missing_ok=True)

    component.preprocess = read_and_delete
    return component


def show_errors(act: Callable[..., Any]) -> Callable[..., Any]:
    """What a person can mend is said on the page; nothing on it changes."""

    @wraps(act)
    def wrapped(*values: Any, **named: Any) -> Any:
        try:
            return act(*values, **named)
        except EXPECTED_ERRORS as error:
            said = error_message(error)
        raise gr.Error(html.escape(said), duration=12, print_exception=False, title="Not done")

    return wrapped


def on(
    trigger: Callable[..., Any],
    act: Callable[..., Any] | None,
    inputs: Sequence[Any] = (),
    outputs: Sequence[Any] = (),
    *,
    js: str | None = None,
) -> Any:
    """Wire an event: no public endpoint of the page's own, no veil over what is shown."""
    return trigger(
        None if act is None else show_errors(act),
        list(inputs),
        list(outputs),
        js=js,
        show_api=False,
        api_name=False,
        show_progress="hidden",
    )


def focus(element: str) -> str:
    """JavaScript that moves the keyboard's focus into an element, once it is there."""
    return f"() => window.raFocus({element!r})"


def sentence(text: str, *, kind: str = "done") -> str:
    """One sentence for a live region."""
    return f'<p class="ra-said ra-{kind}">{html.escape(text)}</p>' if text else ""
