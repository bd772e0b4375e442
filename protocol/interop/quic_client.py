"""The carrier QUIC: one stream of frames behind their lengths, and datagrams."""

import asyncio

from aioquic.asyncio import QuicConnectionProtocol
from aioquic.asyncio import connect as connect_quic
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ConnectionTerminated, DatagramFrameReceived, StreamDataReceived, StreamReset

from chappe import FRAME_BYTES_MAX, Carrier, Closed

DATAGRAM_BYTES_MAX = 1100  # fits into the smallest packet that QUIC allows, with its headers
LENGTH_BYTES_MAX = 4


def prefixed(frame):
    """A frame behind its length as a base-128 varint."""
    length, head = len(frame), bytearray()
    while length >= 128:
        head.append(length & 127 | 128)
        length >>= 7
    head.append(length)
    return bytes(head) + frame


class Splitter:
    """Finds the frames in what a stream has brought."""

    def __init__(self):
        self.buffer = bytearray()

    def feed(self, data):
        self.buffer += data
        frames = []
        while True:
            length = shift = used = 0
            for byte in self.buffer[:LENGTH_BYTES_MAX]:
                length |= (byte & 127) << shift
                shift, used = shift + 7, used + 1
                if byte < 128:
                    break
            else:
                if used == LENGTH_BYTES_MAX:
                    raise ValueError("a length of more than 4 bytes")
                return frames
            if length > FRAME_BYTES_MAX:
                raise ValueError("a frame that is too large")
            if len(self.buffer) < used + length:
                return frames
            frames.append(bytes(self.buffer[used : used + length]))
            del self.buffer[: used + length]


class _Protocol(QuicConnectionProtocol):
    """Hands what happens on the connection to the carrier."""

    on_event = None

    def quic_event_received(self, event):
        self.on_event(event)


class QuicCarrier(Carrier):
    """The frames of one stream; datagrams join the same queue."""

    def __init__(self):
        super().__init__()
        self.splitter = Splitter()
        self.peer_ended = asyncio.Event()
        self.stream = None
        self.gone = self.parting = False
        self.datagrams_received = 0

    async def open(self, host, port, ca):
        configuration = QuicConfiguration(is_client=True, alpn_protocols=["chappe/1"], max_datagram_frame_size=65535, idle_timeout=60)
        configuration.load_verify_locations(ca)
        self.context = connect_quic(host, port, configuration=configuration, create_protocol=self._protocol)
        self.protocol = await asyncio.wait_for(self.context.__aenter__(), 10)
        self.stream = self.protocol._quic.get_next_available_stream_id()
        return self

    async def send_raw(self, data, end=False):
        """Bytes onto the stream as they are."""
        if self.gone:
            raise Closed()
        self.protocol._quic.send_stream_data(self.stream, data, end_stream=end)
        self.protocol.transmit()

    async def send(self, data):
        await self.send_raw(prefixed(data))

    async def send_datagram(self, data):
        if self.gone:
            raise Closed()
        if len(data) > DATAGRAM_BYTES_MAX:
            return await self.send(data)
        self.protocol._quic.send_datagram_frame(data)
        self.protocol.transmit()

    async def close(self, code):
        """End our half of the stream, give the server a second to end its own, then close."""
        if self.gone:
            return
        self.parting = True
        await self.send_raw(b"", end=True)
        try:
            await asyncio.wait_for(self.peer_ended.wait(), 1)
        except asyncio.TimeoutError:
            pass
        self._end(Closed(code), code)

    def _protocol(self, *arguments, **options):
        protocol = _Protocol(*arguments, **options)
        protocol.on_event = self._event
        return protocol

    def _event(self, event):
        if isinstance(event, StreamDataReceived) and event.stream_id == self.stream:
            try:
                for frame in self.splitter.feed(event.data):
                    self.incoming.put_nowait(frame)
            except ValueError as problem:
                self._end(Closed(None, str(problem)), 1000)
            if event.end_stream:
                self._ended_by_server()
        elif isinstance(event, StreamReset):
            self._ended_by_server()
        elif isinstance(event, DatagramFrameReceived):
            self.datagrams_received += 1
            self.incoming.put_nowait(event.data)
        elif isinstance(event, ConnectionTerminated):
            if self.parting:  # the server answers our end with 1000
                return self._end(Closed(1000))
            by_application = event.frame_type is None and event.error_code != 0
            self._end(Closed(event.error_code if by_application else None, event.reason_phrase))

    def _ended_by_server(self):
        """The close with the code follows; without one the connection counts as lost."""
        self.peer_ended.set()
        asyncio.get_running_loop().call_later(1, self._end, Closed(), 1000)

    def _end(self, closed, code=0):
        if self.gone:
            return
        self.gone = True
        self.peer_ended.set()
        self.incoming.put_nowait(closed)
        if self.stream is not None:
            self.protocol.close(code)
            self.leaving = asyncio.ensure_future(self.context.__aexit__(None, None, None))


async def connect(host, port, ca):
    return await QuicCarrier().open(host, port, ca)
