"""The smallest client of the CQL binary protocol (v4): enough to ask a server whether it serves.

Source: native_protocol_v4.spec of Apache Cassandra, sections 2, 4.1 and 4.2.
"""

import socket
import struct

ONE, ALL, SERIAL, LOCAL_QUORUM = 1, 5, 8, 6
_ERROR, _STARTUP, _READY, _QUERY, _RESULT = 0x00, 0x01, 0x02, 0x07, 0x08


class CqlError(Exception):
    """The server's own words."""


class Session:
    """One connection without a pool, compression or authentication."""

    def __init__(self, host, port, timeout_s=2.0):
        self._stream = socket.create_connection((host, port), timeout=timeout_s)
        body = struct.pack(">H", 1) + self._string("CQL_VERSION") + self._string("3.0.0")
        opcode, _ = self._ask(_STARTUP, body)
        if opcode != _READY:
            raise CqlError(f"STARTUP was answered with opcode {opcode}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stream.close()

    @staticmethod
    def _string(text):
        return struct.pack(">H", len(text)) + text.encode()

    def _read(self, count):
        taken = bytearray()
        while len(taken) < count:
            piece = self._stream.recv(count - len(taken))
            if not piece:
                raise CqlError("the server closed the connection")
            taken += piece
        return bytes(taken)

    def _ask(self, opcode, body):
        self._stream.sendall(struct.pack(">BBhBI", 4, 0, 0, opcode, len(body)) + body)
        _, _, _, answer, length = struct.unpack(">BBhBI", self._read(9))
        if length > 1 << 20:
            raise CqlError(f"an answer of {length} bytes: this is no CQL server")
        payload = self._read(length)
        if answer == _ERROR:
            code, size = struct.unpack(">IH", payload[:6])
            raise CqlError(f"{code:#06x} {payload[6:6 + size].decode(errors='replace')}")
        return answer, payload

    def query(self, text, consistency=ONE):
        """Runs one statement; the raw RESULT body, or CqlError."""
        encoded = text.encode()
        opcode, payload = self._ask(_QUERY, struct.pack(">I", len(encoded)) + encoded + struct.pack(">HB", consistency, 0))
        if opcode != _RESULT:
            raise CqlError(f"QUERY was answered with opcode {opcode}")
        return payload
