"""What both clients share: the schema, and the session of a device.

Left out: the loop that reconnects (backoff and reconnects are its parts), GoAway's move, giving up after 24 hours.
"""

import asyncio
import os
import random
import tempfile
import time

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from grpc_tools import protoc

FRAME_BYTES_MAX = 1_048_576
PING_WITH_UNACKED_S = 8
DECIDED = range(1, 6)  # OUTCOME_ACCEPTED to OUTCOME_QUOTA
ERROR_SCOPE_SUBMIT = 2


class Closed(Exception):
    """The connection ended; code is None if it was lost without a close."""

    def __init__(self, code=None, reason=""):
        super().__init__(f"closed with {code} {reason}")
        self.code, self.reason = code, reason


class Refused(Exception):
    """The server answered a submit with an Error."""


class BadFrame(Exception):
    """What the server sent breaks the protocol: reconnect."""


def load_schema(path):
    """Compile the schema; returns {message name: class}."""
    folder, name = os.path.split(os.path.abspath(path))
    with tempfile.TemporaryDirectory() as scratch:
        out = os.path.join(scratch, "set")
        if protoc.main(["protoc", f"-I{folder}", f"--descriptor_set_out={out}", name]) != 0:
            raise SystemExit(f"cannot compile {path}")
        with open(out, "rb") as file:
            files = descriptor_pb2.FileDescriptorSet.FromString(file.read()).file
    pool = descriptor_pool.DescriptorPool()
    for file in files:
        pool.Add(file)
    classes = message_factory.GetMessageClassesForFiles([file.name for file in files], pool)
    return {name.split(".")[-1]: kind for name, kind in classes.items()}


def reconnects(code):
    """Whether a close code lets the client reconnect by itself."""
    return code is None or not (code == 4409 or 3500 <= code <= 3999 or 4500 <= code <= 4999)


def backoff(attempt):
    """Seconds to wait before the next attempt, counted from 0: full jitter."""
    return random.uniform(0, min(20, 0.5 * 2**attempt))


class Carrier:
    """A connection that moves frames: receive, and what a subclass adds (send, send_datagram, close)."""

    def __init__(self):
        self.incoming = asyncio.Queue()  # frames as bytes, then one Closed

    async def receive(self):
        item = await self.incoming.get()
        if isinstance(item, Closed):
            self.incoming.put_nowait(item)
            raise item
        return item

    async def send_datagram(self, data):
        """Send one frame that may be lost; a carrier without datagrams sends it like any other."""
        await self.send(data)


class Device:
    """What a device keeps: cursor, recent envelope ids, outbox. In memory here; a real one writes it to disk."""

    def __init__(self, token, name):
        self.token, self.name = token, name
        self.cursor = None  # (tag, seq)
        self.recent = {}  # envelope ids, oldest first
        self.outbox = {}  # submit_id -> Submit, in the order of the first transmission
        self.inbox = []  # delivered and shown
        self.repeated = 0  # delivered again and not shown
        self.resume = (b"", 0.0)

    def persist(self, deliver):
        if deliver.envelope_id in self.recent:
            self.repeated += 1
        else:
            self.recent[deliver.envelope_id] = True
            self.inbox.append(deliver)
        while len(self.recent) > 1000:
            del self.recent[next(iter(self.recent))]


class Session:
    """One connection of a device, from Hello to the close."""

    def __init__(self, types, device, carrier, acks=True):
        self.types, self.device, self.carrier, self.acks = types, device, carrier, acks
        self.have = self.acked = 0
        self.welcome = self.backlog_end = self.go_away = None
        self.delivers, self.ephemerals, self.truncated, self.errors = [], [], [], []
        self.pongs, self.results = {}, {}  # nonce -> future, submit_id -> future
        self.replies = {}  # request id -> future
        self.welcomed = asyncio.get_running_loop().create_future()
        self.ended = asyncio.get_running_loop().create_future()  # becomes a Closed

    async def start(self, role="ROLE_MAIN", cursor=True):
        """Say Hello, wait for the Welcome, send again what the outbox holds."""
        hello = self.types["Hello"](token=self.device.token, device=self.device.name, role=role)
        if cursor and self.device.cursor:
            hello.cursor.tag, hello.cursor.seq = self.device.cursor
        token, at = self.device.resume
        if time.monotonic() - at < 300:
            hello.resume_token = token
        self.reader = asyncio.create_task(self._read())
        await self.send(hello=hello)
        await asyncio.wait_for(asyncio.shield(self.welcomed), 10)
        self.pinger = asyncio.create_task(self._keep_alive())
        for submit in self.device.outbox.values():
            submit.attempt += 1
            await self._transmit(submit)
        return self.welcome

    async def send(self, **frame):
        await self.carrier.send(self.types["ClientFrame"](**frame).SerializeToString())

    async def ack(self, upto):
        self.acked = upto
        await self.send(ack=self.types["Ack"](upto=upto))

    async def ping(self, timeout=10):
        """Send a Ping, return its Pong."""
        nonce = random.getrandbits(64)
        self.pongs[nonce] = asyncio.get_running_loop().create_future()
        await self.send(ping=self.types["Ping"](nonce=nonce))
        try:
            return await asyncio.wait_for(self.pongs[nonce], timeout)
        finally:
            del self.pongs[nonce]

    async def submit(self, user, payload, submit_id=None, attempt=1):
        """Send one payload to all devices of one user; returns a future of its result."""
        submit = self.types["Submit"](submit_id=submit_id or os.urandom(16), attempt=attempt, payloads=[payload])
        submit.targets.add(user=user)
        self.device.outbox[submit.submit_id] = submit  # written down before it is sent
        return await self._transmit(submit)

    async def ephemeral(self, user, payload):
        """Send what is never stored, in a datagram if the carrier has them; nothing is waited for."""
        submit = self.types["Submit"](submit_id=os.urandom(16), attempt=1, payloads=[payload], ephemeral=True)
        submit.targets.add(user=user)
        await self.carrier.send_datagram(self.types["ClientFrame"](submit=submit).SerializeToString())

    async def request(self, **body):
        """Ask for something, return the Reply."""
        number = random.getrandbits(63)
        await self.send(request=self.types["Request"](id=number, **body))
        return await self.reply(number)

    async def reply(self, number, timeout=15):
        """The Reply to the request of that id."""
        future = self.replies.setdefault(number, asyncio.get_running_loop().create_future())
        try:
            return await asyncio.wait_for(future, timeout)
        finally:
            del self.replies[number]

    async def close(self):
        """Part with 1000."""
        await self.carrier.close(1000)
        return await asyncio.wait_for(self.ended, 5)

    async def _transmit(self, submit):
        future = self.results[submit.submit_id] = asyncio.get_running_loop().create_future()
        await self.send(submit=submit)
        return future

    async def _read(self):
        try:
            while True:
                self._take(await self.carrier.receive())
                # One ack for all that has come: acks count as frames, and those are limited.
                if self.acks and self.welcome and self.carrier.incoming.empty() and self.device.cursor[1] > self.acked:
                    await self.ack(self.device.cursor[1])
        except Closed as closed:
            end = closed
        except (BadFrame, DecodeError) as problem:
            await self.carrier.close(1000)
            end = Closed(None, str(problem))
        self.ended.set_result(end)
        for future in [self.welcomed, *self.pongs.values(), *self.results.values(), *self.replies.values()]:
            if not future.done():
                future.set_exception(end)
                future.exception()  # an answer that nobody waits for is no complaint

    async def _keep_alive(self):
        """Ping in every interval, sooner while something is not acked; without a Pong, close."""
        every = self.welcome.limits.ping_every_ms / 1000
        try:
            while not self.ended.done():
                pause = PING_WITH_UNACKED_S if self.device.cursor[1] > self.acked else every
                await asyncio.wait([self.ended], timeout=pause * random.uniform(0.9, 1))
                await self.ping(every)
        except asyncio.TimeoutError:
            await self.carrier.close(1000)
        except Closed:
            pass

    def _take(self, data):
        frame = self.types["ServerFrame"].FromString(data)
        kind = frame.WhichOneof("frame")
        if kind is None or (self.welcome is None and kind not in ("welcome", "error")):
            return  # a frame of a newer server, or a datagram that overtook the Welcome
        body = getattr(frame, kind)
        match kind:
            case "welcome":
                if self.welcome or len(body.tag) != 16 or len(body.session) != 16:
                    raise BadFrame("welcome")
                self.welcome, self.have = body, getattr(body, "from")
                if self.device.cursor is None or self.device.cursor[0] != body.tag:
                    self.device.cursor = (body.tag, self.have)
                self.acked, self.device.resume = self.device.cursor[1], (body.resume_token, time.monotonic())
                self.welcomed.set_result(body)
            case "deliver":
                if len(body.envelope_id) != 16 or body.prev >= body.seq:
                    raise BadFrame("deliver")
                if self.have < body.prev:
                    raise BadFrame("a Deliver is missing")
                if body.seq > self.have:
                    self.delivers.append(body)
                    self.device.persist(body)
                    self._move(body.seq)
            case "backlog_end":
                self.backlog_end = body
                self._move(body.upto)
            case "truncated":
                self.truncated.append(body)
                self._move(body.to)
            case "pong":
                self._move(body.upto)
                if (future := self.pongs.get(body.nonce)) and not future.done():
                    future.set_result(body)
            case "ephemeral":
                self.ephemerals.append(body)
            case "go_away":
                self.go_away = body
            case "reply":
                if body.WhichOneof("body") is not None:
                    future = self.replies.setdefault(body.id, asyncio.get_running_loop().create_future())
                    if not future.done():
                        future.set_result(body)
            case "submit_result":
                self._settle(body.submit_id, result=body)
            case "error":
                self.errors.append(body)
                if body.scope == ERROR_SCOPE_SUBMIT:
                    self._settle(body.submit_id, error=body)

    def _move(self, upto):
        """Everything up to here is persisted or was not for this device."""
        self.have = max(self.have, upto)
        self.device.cursor = (self.welcome.tag, max(self.device.cursor[1], self.have))

    def _settle(self, submit_id, result=None, error=None):
        """Keep in the outbox what is not decided, and hand the answer to whoever waits for it."""
        if submit := self.device.outbox.get(submit_id):
            decided = {one.number for one in result.results if one.outcome in DECIDED} if result else set()
            left = [target for target in submit.targets if target.number not in decided]
            del submit.targets[:]
            submit.targets.extend(left)  # a retry names only what is not decided
            if not left or (error and not error.retryable):
                del self.device.outbox[submit_id]
        future = self.results.pop(submit_id, None)
        if future and not future.done():
            future.set_result(result) if result else future.set_exception(Refused(error.code))
