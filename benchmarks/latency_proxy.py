"""A TCP proxy that delays every request, as a server far away would."""

from __future__ import annotations

import asyncio
import threading
from urllib.parse import urlsplit

__all__ = ["LatencyProxy"]


class LatencyProxy:
    """Forward to ``endpoint``; what a client sends arrives ``seconds`` later.

    Bytes in flight do not hold up others, so only the latency grows, not the bandwidth falls.
    Use it as a context manager: it gives the endpoint to connect to instead.
    """

    def __init__(self, endpoint: str, *, seconds: float) -> None:
        parts = urlsplit(endpoint)
        self._target = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._seconds = seconds
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> str:
        self._thread.start()
        started = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, "127.0.0.1", 0), self._loop
        )
        self._server = started.result(timeout=10)
        port = self._server.sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}"

    def __exit__(self, *_error: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(timeout=10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
        self._loop.close()

    async def _stop(self) -> None:
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(*self._target)
        try:
            await asyncio.gather(self._delayed(reader, back), _copy(there, writer))
        except (ConnectionError, asyncio.CancelledError):
            pass  # the client has gone, or the proxy ends
        finally:
            back.close()
            writer.close()

    async def _delayed(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        """Send on what comes, in order, each piece ``seconds`` after it came."""
        line: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def send() -> None:
            while True:
                due, data = await line.get()
                await asyncio.sleep(max(0.0, due - self._loop.time()))
                if not data:
                    break
                target.write(data)
                await target.drain()
            if target.can_write_eof():
                target.write_eof()

        sender = asyncio.create_task(send())
        while True:
            data = await source.read(2**16)
            line.put_nowait((self._loop.time() + self._seconds, data))
            if not data:
                break
        await sender


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    while data := await source.read(2**16):
        target.write(data)
        await target.drain()
    if target.can_write_eof():
        target.write_eof()
