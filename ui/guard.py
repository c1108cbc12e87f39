"""Middleware of the app: it answers to its own host names only, and accepts no uploads and no long requests."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ui.visitors import is_address

MOST_BYTES = 256 * 1024  # of a request: the values of the form and the prompt are some kilobytes


class Guard:
    """ASGI middleware: refuses foreign host names and uploads.

    names: the host names that are answered to. A plain address is always answered: in an attack by DNS rebinding, where
    a foreign host name resolves to this machine, the browser sends that name.
    """

    def __init__(self, app: ASGIApp, names: Sequence[str]) -> None:
        self.app = app
        self.by_name = TrustedHostMiddleware(app, names, www_redirect=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        if headers.get("content-type", "").split(";")[0].strip().lower() == "multipart/form-data":
            await PlainTextResponse("Uploads are not accepted.", 403)(scope, receive, send)
        elif is_address(_host(headers)):
            await self.app(scope, receive, send)
        else:
            await self.by_name(scope, receive, send)


def guarded(names: Sequence[str]) -> dict:
    """Arguments of the FastAPI application: it answers to `names` only, and refuses uploads and long requests."""
    return {"middleware": [Middleware(Guard, names=names)], "max_body_size": MOST_BYTES}


def _host(headers: Headers) -> str:
    try:
        return urlsplit(f"//{headers.get('host', '')}").hostname or ""
    except ValueError:  # brackets without an address
        return ""
