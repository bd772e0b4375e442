"""The carrier WebSocket."""

import asyncio
import ssl

import websockets
from websockets.asyncio.client import connect as connect_websocket

from chappe import FRAME_BYTES_MAX, Carrier, Closed


class WebSocketCarrier(Carrier):
    """A frame is a binary message."""

    parting = answered = False

    async def open(self, host, port, ca):
        where = f"[{host}]" if ":" in host else host
        self.socket = await connect_websocket(
            f"wss://{where}:{port}/v1/connect",
            ssl=ssl.create_default_context(cafile=ca),
            subprotocols=["chappe.v1"],
            compression=None,
            ping_interval=None,  # the protocol has its own
            max_size=FRAME_BYTES_MAX,
            open_timeout=10,
            close_timeout=2,
        )
        if self.socket.subprotocol != "chappe.v1":
            await self.socket.close(1000)
            raise Closed(None, "the server does not speak chappe.v1")
        self.pump = asyncio.create_task(self._pump())
        return self

    async def _pump(self):
        try:
            while True:
                data = await self.socket.recv()
                if isinstance(data, str):
                    await self.socket.close(1000)
                    self.incoming.put_nowait(Closed(None, "a text message"))
                    return
                self.incoming.put_nowait(data)
        except websockets.ConnectionClosed as end:
            self.answered = end.rcvd is not None
            close = end.rcvd or (end.sent if self.parting else None)
            self.incoming.put_nowait(Closed(close.code, close.reason) if close else Closed())

    async def send(self, data):
        try:
            await self.socket.send(data)
        except websockets.ConnectionClosed as end:
            raise Closed(end.rcvd.code if end.rcvd else None) from None

    async def close(self, code):
        self.parting = True
        await self.socket.close(code)


async def connect(host, port, ca):
    return await WebSocketCarrier().open(host, port, ca)
