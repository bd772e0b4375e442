"""Runs both clients against a server and says what holds.

The tokens come from the environment: CHAPPE_TOKEN_ADA and CHAPPE_TOKEN_BEN, or from files named by
CHAPPE_TOKEN_ADA_FILE and CHAPPE_TOKEN_BEN_FILE. Users and devices are read out of the tokens.
"""

import argparse
import asyncio
import base64
import json
import os
import re
import sys
import time

from google.protobuf import text_format
from google.protobuf.message import DecodeError

import quic_client
import websocket_client
from chappe import Closed, Device, Session, load_schema

SECONDS_MAX = 60
CARRIERS = {"websocket": websocket_client.connect, "quic": quic_client.connect}


class Checks:
    def __init__(self):
        self.passed = self.failed = 0

    def __call__(self, holds, name, seen=""):
        print(("ok    " if holds else "FAIL  ") + name + (f": {seen}" if not holds and seen != "" else ""), flush=True)
        self.passed, self.failed = self.passed + bool(holds), self.failed + (not holds)


def claims(token):
    part = token.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))


def token_of(name):
    token = os.environ.get(f"CHAPPE_TOKEN_{name}")
    if not token and (path := os.environ.get(f"CHAPPE_TOKEN_{name}_FILE")):
        with open(path) as file:
            token = file.read().strip()
    if not token:
        raise SystemExit(f"set CHAPPE_TOKEN_{name} or CHAPPE_TOKEN_{name}_FILE")
    return token


async def until(condition, seconds=5):
    """Wait until the condition holds; says whether it did."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        await asyncio.sleep(0.01)
    return True


def read_vector(path):
    """The head, the bytes and the fields of a vector; bytes become what text format can read."""
    with open(path, encoding="utf-8") as file:
        lines = file.read().splitlines()
    at = lines.index("hex:")
    after = lines.index("fields:") if "fields:" in lines else len(lines)
    head = dict(line.split(": ", 1) for line in lines[:at] if not line.startswith("#"))
    fields = None if after == len(lines) else "\n".join(lines[after + 1 :])
    if fields is not None:
        escape = lambda found: '"' + "".join(f"\\x{found[1][i:i + 2]}" for i in range(0, len(found[1]), 2)) + '"'
        fields = re.sub(r"\b0x([0-9a-f]*)", escape, fields)
    return head, bytes.fromhex("".join(lines[at + 1 : after])), fields


def check_vectors(check, types, folder):
    """What a decoder that knows only the schema can say of the vectors; returns the client frames that close, and those that are answered."""
    bad, refused = [], []
    for name in sorted(os.listdir(folder)):
        if not name.endswith(".txt"):
            continue
        head, data, fields = read_vector(os.path.join(folder, name))
        kind, expect = types[head["message"]], head["expect"]
        if name.startswith("bad-") and head["message"] == "ClientFrame":
            bad.append((name, data))
        if name.startswith("refused-"):
            refused.append((name, data, expect.split()[0]))
        try:
            frame, error = kind.FromString(data), None
        except DecodeError as problem:
            frame, error = None, problem
        if expect == "garbage" and fields is not None:
            continue  # the protocol is stricter than the schema: a general decoder takes it
        if expect == "garbage":
            check(frame is None, f"vector {name}: no protobuf")
            continue
        if frame is None:
            check(False, f"vector {name}: decodes", error)
            continue
        known = kind()
        known.CopyFrom(frame)
        known.DiscardUnknownFields()
        # Parsing the text gives every field the presence that it has on the wire.
        right = known == text_format.Parse(fields or "", kind())
        known_body = frame.WhichOneof("frame") != "reply" or frame.reply.WhichOneof("body") is not None
        right = right and (frame.WhichOneof("frame") is None or not known_body) == (expect == "unknown_frame")
        right = right and (head["canonical"] == "yes") <= (frame.SerializeToString() == data)
        check(right, f"vector {name}: {expect}")
    return bad, refused


class World:
    """A server, two devices and how to connect them."""

    def __init__(self, options, types):
        self.types, self.ca = types, options.ca
        self.host, _, port = options.server.rpartition(":")
        self.host, self.port = self.host.strip("[]"), int(port)
        self.devices, self.users = {}, {}
        for name in ("ADA", "BEN"):
            token = token_of(name)
            self.users[name] = claims(token)["sub"]
            self.devices[name] = Device(token, claims(token)["device"])

    async def carrier(self, kind):
        return await CARRIERS[kind](self.host, self.port, self.ca)

    async def session(self, name, kind, acks=True, cursor=True, backlog=True):
        session = Session(self.types, self.devices[name], await self.carrier(kind), acks)
        await session.start(cursor=cursor)
        if backlog and not await until(lambda: session.backlog_end is not None or session.ended.done()):
            raise TimeoutError("no BacklogEnd")
        return session

    async def fresh(self, name):
        """What a program without storage knows of its device."""
        self.devices[name] = Device(self.devices[name].token, self.devices[name].name)
        await (await self.session(name, "websocket")).close()


async def end_of(session):
    """The code that a connection ends with."""
    try:
        return (await asyncio.wait_for(asyncio.shield(session.ended), 5)).code
    except asyncio.TimeoutError:
        return "nothing in 5 s"


def payloads(delivers):
    return [deliver.payload for deliver in delivers]


async def check_exchange(check, world):
    ada, ben = await world.session("ADA", "websocket"), await world.session("BEN", "quic")
    for name, session in (("websocket", ada), ("quic", ben)):
        limits = session.welcome.limits
        good = session.welcome.epoch > 0 and limits.frame_bytes_max > limits.envelope_bytes_max > 0
        check(good, f"hello and welcome over {name}", session.welcome)
    for sender, receiver, frm, to in ((ada, ben, "ADA", "BEN"), (ben, ada, "BEN", "ADA")):
        sent = [f"{frm} {number}".encode() for number in range(20)]
        futures = [await sender.submit(world.users[to], payload) for payload in sent]
        results = await asyncio.wait_for(asyncio.gather(*futures), 10)
        ids = [result.results[0].envelope_id for result in results]
        check(all(len(result.results) == 1 and result.results[0].outcome == 1 for result in results), f"{frm} to {to}: 20 accepted", results)
        await until(lambda: len(receiver.delivers) >= 20)
        got = receiver.delivers
        check(payloads(got) == sent, f"{frm} to {to}: 20 arrive once and in order", payloads(got))
        check([deliver.envelope_id for deliver in got] == ids, f"{frm} to {to}: the ids are those of the results")
        stamped = {(deliver.sender.user, deliver.sender.device) for deliver in got}
        check(stamped == {(world.users[frm], world.devices[frm].name)}, f"{frm} to {to}: the sender is stamped", stamped)
        pong = await receiver.ping()
        check(bool(got) and pong.upto >= got[-1].seq, f"{frm} to {to}: the pong tells the position", pong)
        check(not sender.errors and not receiver.errors, f"{frm} to {to}: no errors", sender.errors + receiver.errors)
    return ada, ben


async def check_away(check, world, ada, ben):
    await ben.close()
    sent = [f"while away {number}".encode() for number in range(5)]
    await asyncio.gather(*[await ada.submit(world.users["BEN"], payload) for payload in sent])
    device = world.devices["BEN"]
    before = device.cursor

    ben = await world.session("BEN", "quic", acks=False)
    check(payloads(ben.delivers) == sent, "the backlog comes after a reconnect with the cursor", payloads(ben.delivers))
    await ben.close()
    shown, device.cursor = len(device.inbox), before  # as if the program had died before it wrote its cursor
    ben = await world.session("BEN", "websocket", acks=False)
    check(payloads(ben.delivers) == sent and device.repeated == 5 and len(device.inbox) == shown, "what was not acked comes again and is not shown twice")
    await ben.close()

    ben = await world.session("BEN", "quic")
    check(not ben.delivers, "the cursor of the Hello acks", payloads(ben.delivers))
    await (await ada.submit(world.users["BEN"], b"one more"))
    await until(lambda: ben.acked == ben.have > 0 and ben.delivers)
    await ben.close()
    device.resume = (b"", 0.0)
    ben = await world.session("BEN", "quic", cursor=False)
    check(not ben.delivers, "an ack just before the end of the stream counts: nothing comes twice", payloads(ben.delivers))
    return ben


async def check_retry(check, world, ada, ben):
    user, submit_id = world.users["BEN"], os.urandom(16)
    first = await (await ada.submit(user, b"once", submit_id))
    again = await (await ada.submit(user, b"once", submit_id, attempt=2))
    await ada.close()
    ada = await world.session("ADA", "quic")
    third = await (await ada.submit(user, b"once", submit_id, attempt=3))
    await ada.close()
    ada = await world.session("ADA", "websocket")
    await (await ada.submit(user, b"after"))
    await until(lambda: b"after" in payloads(ben.delivers))
    got = ben.delivers
    check([result.attempt for result in (first, again, third)] == [1, 2, 3], "each result says which attempt it answers")
    check(first.results == again.results == third.results, "a retry, over another carrier too, has the same answer", [first, again, third])
    slots = len(got) == 2 and got[1].seq == got[0].seq + 1
    check(payloads(got) == [b"once", b"after"] and slots, "three transmissions take one slot", [(d.seq, d.payload) for d in got])
    unknown = await (await ada.submit("nobody-has-this-name", b"?"))
    check(unknown.results[0].outcome == 2, "an unknown user is told", unknown)
    return ada, ben


async def check_ephemeral(check, world, ada, ben):
    for number in range(5):  # a datagram may be lost
        await ben.ephemeral(world.users["ADA"], b"typing")
        await ada.ephemeral(world.users["BEN"], b"typing")
        if await until(lambda: ada.ephemerals and ben.ephemerals, 1):
            break
    check(ada.ephemerals and ada.ephemerals[0].payload == b"typing", "an ephemeral that was sent in a datagram arrives")
    check(ben.ephemerals and ben.carrier.datagrams_received > 0, "an ephemeral arrives in a datagram")
    large = b"x" * 5000
    await ben.ephemeral(world.users["ADA"], large)
    await ada.ephemeral(world.users["BEN"], large)
    there = await until(lambda: ada.ephemerals[-1:] and ben.ephemerals[-1:] and ada.ephemerals[-1].payload == ben.ephemerals[-1].payload == large)
    check(there, "an ephemeral that is too large for a datagram takes the stream")
    check(not [deliver for deliver in ben.delivers if deliver.payload in (b"typing", large)], "an ephemeral takes no slot")


async def check_large(check, world, ada, ben):
    large = os.urandom(90_000)
    for sender, receiver, to, name in ((ada, ben, "BEN", "to"), (ben, ada, "ADA", "from")):
        result = await (await sender.submit(world.users[to], large))
        await until(lambda: large in payloads(receiver.delivers))
        check(result.results[0].outcome == 1 and large in payloads(receiver.delivers), f"an envelope of 90,000 bytes passes {name} QUIC")


async def check_push(check, world, ben, refused):
    types = world.types
    targets = [
        types["PushTarget"](app="org.example.chat", apns=types["Apns"](token=os.urandom(32), kind="APNS_KIND_VOIP")),
        types["PushTarget"](app="project-7", fcm=types["Fcm"](token="cX:APA91b_-")),
        types["PushTarget"](app="web", web_push=types["WebPush"](endpoint="https://push.example/1", p256dh=b"\x04" + os.urandom(64), auth=os.urandom(16))),
    ]
    night = types["Quiet"](windows=[types["QuietWindow"](from_min=1320, to_min=390)], calls_pass=True)
    reply = await ben.request(set_push=types["SetPush"](targets=targets, quiet=night))
    check(reply.WhichOneof("body") == "push_set", "a device says where it is woken", reply)
    reply = await ben.request(set_push=types["SetPush"]())
    check(reply.WhichOneof("body") == "push_set", "and that it is not woken any more", reply)
    for name, data, code in refused:
        await ben.carrier.send(data)
        reply = await ben.reply(7)  # the id in all of these vectors
        check(reply.error.code == code and not reply.error.retryable, f"vector {name}: answered with {code}", reply)
    peek = Session(types, world.devices["BEN"], await world.carrier("websocket"), acks=False)
    await peek.start(role="ROLE_PEEK")
    reply = await peek.request(set_push=types["SetPush"](targets=targets))
    check(reply.error.code == "not_main", "a peek may not say so", reply)
    await peek.close()
    check((await ben.ping()) is not None and not ben.ended.done(), "the session goes on behind refused requests")


async def check_elsewhere(check, world, ben):
    for old, new in (("quic", "quic"), ("quic", "websocket"), ("websocket", "websocket"), ("websocket", "quic")):
        newer = await world.session("BEN", new)
        code = await end_of(ben)
        told = ben.errors and ben.errors[-1].code == "connected_elsewhere" and ben.errors[-1].scope == 3
        check(code == 4409 and told, f"a second connection ({new}) ends the first one ({old}) with 4409", (code, ben.errors))
        ben = newer
    check((await ben.ping()) is not None, "the newer connection lives on")
    await ben.close()


async def check_closes(check, world, bad):
    async def case(name, kind, data, wanted, raw=False, hello=True):
        session = Session(world.types, world.devices["BEN"], await world.carrier(kind))
        if hello:
            await session.start()
        else:
            session.reader = asyncio.create_task(session._read())
        try:
            await (session.carrier.send_raw(data) if raw else session.carrier.send(data))
        except Closed:
            pass  # the server may end it before all is sent
        code = await end_of(session)
        words = [error.code for error in session.errors] + ([session.ended.result().reason] if session.ended.done() else [])
        check(code == wanted[0] and words == [wanted[1]] * 2, f"{name} over {kind}: {wanted[0]} {wanted[1]}", (code, words))

    types, frame = world.types, world.types["ClientFrame"]
    bad_frame = (3500, "bad_frame")
    ping = frame(ping=types["Ping"](nonce=1)).SerializeToString()
    second = frame(hello=types["Hello"](token=world.devices["BEN"].token, device=world.devices["BEN"].name)).SerializeToString()
    stranger = frame(hello=types["Hello"](token=world.devices["BEN"].token, device="another-device")).SerializeToString()
    ahead = frame(ack=types["Ack"](upto=1 << 40)).SerializeToString()
    for kind in CARRIERS:
        await case("bytes that are no protobuf", kind, b"\xff" * 12, bad_frame)
        await case("a first frame that is no Hello", kind, ping, (3502, "hello_expected"), hello=False)
        await case("a second Hello", kind, second, (3502, "hello_expected"))
        await case("an ack beyond what was told", kind, ahead, (3503, "ack_beyond_delivered"))
        await case("a frame that is too large", kind, b"\xa2" * (1_048_576 + 1), (3501, "frame_too_large"))
        await case("a token of another device", kind, stranger, (4500, "token_invalid"), hello=False)
    await case("a length of 5 bytes", "quic", b"\x81\x80\x80\x80\x00", bad_frame, raw=True)
    for number, (name, data) in enumerate(bad):
        first = data[:1] == b"\x0a"  # a Hello can only be refused as the first frame
        await case(f"vector {name}", list(CARRIERS)[number % 2], data, bad_frame, hello=not first)

    for kind in CARRIERS:
        session = await world.session("BEN", kind)
        await session.carrier.send(b"")
        await session.carrier.send(bytes.fromhex("a206020801"))
        check((await session.ping()) is not None, f"unknown frames are ignored over {kind}")
        await session.close()
    session = await world.session("BEN", "websocket")
    await session.close()
    check(session.carrier.answered, "the server answers a close frame with its own (RFC 6455, 5.5.1)", "the TCP connection ended without one")
    session = await world.session("BEN", "quic")
    await session.carrier.send_raw(bytes([0x80 | len(ping), 0x80, 0x00]) + ping)
    check((await session.ping()) is not None and not session.ended.done(), "a length that is not in its shortest form is taken")
    await session.close()


async def run(check, world, bad, refused):
    await world.fresh("ADA")
    await world.fresh("BEN")
    ada, ben = await check_exchange(check, world)
    ben = await check_away(check, world, ada, ben)
    ada, ben = await check_retry(check, world, ada, ben)
    await check_ephemeral(check, world, ada, ben)
    await check_large(check, world, ada, ben)
    check(not ada.errors and not ben.errors, "no errors on the way", ada.errors + ben.errors)
    await check_push(check, world, ben, refused)
    await check_elsewhere(check, world, ben)
    await check_closes(check, world, bad)
    await ada.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True, metavar="HOST:PORT", help="TCP and UDP of one number")
    parser.add_argument("--ca", required=True, metavar="FILE", help="the certificate to trust, PEM")
    parser.add_argument("--proto", required=True, metavar="FILE", help="chappe.proto")
    parser.add_argument("--vectors", metavar="FOLDER", help="test vectors; default: vectors beside the schema")
    options = parser.parse_args()
    types = load_schema(options.proto)
    check = Checks()
    folder = options.vectors or os.path.join(os.path.dirname(os.path.abspath(options.proto)), "vectors")
    bad, refused = check_vectors(check, types, folder)
    world = World(options, types)
    try:
        asyncio.run(asyncio.wait_for(run(check, world, bad, refused), SECONDS_MAX))
    except asyncio.TimeoutError:
        check(False, f"all is over within {SECONDS_MAX} s, each step in its time")
    except Exception as problem:
        check(False, "no step fails in another way", repr(problem))
    print(f"{check.passed} checks passed" + (f", {check.failed} failed" if check.failed else ""))
    sys.exit(1 if check.failed else 0)


if __name__ == "__main__":
    main()
