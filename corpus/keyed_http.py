"""HTTP requests that carry a key: they go to the address they were made for, or nowhere."""

from __future__ import annotations

import urllib.request

__all__ = ["keyed_opener"]


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Follow nothing: urllib would send the key along to wherever it is sent."""

    def redirect_request(self, *_: object, **__: object) -> None:
        return None


def keyed_opener() -> urllib.request.OpenerDirector:
    """Return what opens a request with a key; a redirect raises HTTPError like a refusal."""
    return urllib.request.build_opener(_NoRedirects)
