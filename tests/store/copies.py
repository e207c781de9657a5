"""What lies in a store, for tests that compare copies."""

from __future__ import annotations

import http.server
import threading
from contextlib import contextmanager
from functools import partial

OWN = ("store.json", "claims", "decisions", "catalog.json")


def objects(store):
    """Every object of a store by key, but for what is the store's own."""
    found = dict(store.backend.walk(""))
    kept = [key for key in found if not set(key.split("/")) & set(OWN)]
    return {key: store.backend.get(key, max_bytes=found[key]) for key in kept}


class _NoListing(http.server.SimpleHTTPRequestHandler):
    """Plain files, as a static host serves them."""

    def list_directory(self, path):
        self.send_error(404)

    def log_message(self, *args):
        pass


@contextmanager
def serve_folder(folder):
    """Serve a folder over plain HTTP, without listings; gives its URL."""
    handler = partial(_NoListing, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
