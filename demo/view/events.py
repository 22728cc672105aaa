"""What the parts of the page share: how events are answered, and who asks."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from vtc.demo.jobs.turns import Stopped, Waiting
from vtc.demo.view import html
from vtc.eval.cli.errors import InputError

if TYPE_CHECKING:
    from vtc.demo.service import Service

#: Of events that are answered quickly and are of no use to clients of the API.
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
#: The same of any number at once; how many may wait for the model is for `Turns` to say.
MODEL: dict[str, Any] = {**QUIET, "concurrency_limit": None}

#: What a sweep and a sheet say where they were stopped.
CANCELLED = "Cancelled; what was found stays."

#: What the page opens with: the values of a link that says nothing.
OPENING = {
    "example": "images/6",
    "a": "divprune:keep=0.25",
    "b": "none",
    "methods": "divprune,fastv,random",
    "keeps": "0.5, 0.25, 0.125, 0.0625",
    "questions": "0",
    "keep": "0.25",
    "tab": "compare",
}


@dataclass(frozen=True)
class Trouble:
    """Why work ended early."""

    reason: str


@dataclass(frozen=True)
class Ended:
    """The visitor stopped it."""


def is_end(item: Any) -> bool:
    """Whether nothing comes after it, of the `news`, though not all is there."""
    return isinstance(item, Ended | Trouble)


async def news(start: Callable[[], AsyncGenerator[Any, None]]) -> AsyncGenerator[Any, None]:
    """What work hands on, and at its end `Ended`, or `Trouble` where it could not begin or go on."""
    try:
        async with aclosing(start()) as run:
            async for item in run:
                yield item
    except Stopped:
        yield Ended()
    except InputError as error:
        yield Trouble(str(error))
    except Exception as error:  # a fault of ours, or of the model
        logging.getLogger(__name__).exception("a visitor's request failed")
        yield Trouble(f"this failed: {type(error).__name__}: {error}")


async def shown(
    start: Callable[[], AsyncGenerator[Any, None]], see: Callable[[Any], Any]
) -> AsyncGenerator[tuple[Any, Any], None]:
    """Each of the `news`, and what `see` makes of it, beside the loop that serves everybody."""
    async with aclosing(news(start)) as items:
        async for item in items:
            yield item, await asyncio.to_thread(see, item)


def status(item: Any, stopped: str) -> str | None:
    """What is said of news that is no result; None for a result.

    Args:
        item: of `news`.
        stopped: what is said where the visitor stopped it.
    """
    if isinstance(item, Trouble):
        return html.refused(item.reason)
    if isinstance(item, Ended):
        return html.hint(stopped)
    return html.waiting(item.ahead) if isinstance(item, Waiting) else None


def stopping(service: "Service", kind: str) -> Callable[..., None]:
    """A handler that stops the visitor's work of a kind; what shows it says that it ended, after what came before."""

    def stop(request: gr.Request) -> None:
        service.turns.stop(user_of(request), kind)

    return stop


def user_of(request: gr.Request) -> str:
    """Whose turns are taken: those of a visitor's tab."""
    return request.session_hash or str(request.client)


def address_of(request: gr.Request) -> str:
    """Under which the visitor sees this server."""
    scheme = request.request.url.scheme if request.request is not None else "http"
    return f"{scheme}://{request.headers.get('host', 'localhost')}/"


def upload(**given: Any) -> gr.File:
    """A file as the path at which it landed; what it shows is looked at by `uploads` alone."""
    made = gr.File(**given)
    # Its own method makes an empty file as well, that nobody removes; a subclass would write a stub beside this module.
    made.preprocess = _path  # type: ignore[method-assign, assignment]
    return made


def _path(payload: Any) -> str | None:
    return None if payload is None else payload.path
