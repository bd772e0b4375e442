#!/usr/bin/env python3
"""Checks the page index.html in a real Chromium against a real server.

    chappe serve --config …     with origins = ["http://localhost:21862"] and a certificate that browsers take by its hash
                                (self-made, ECDSA P-256, at most 14 days, in `tls.certificate` and `tls.key`)
    CHAPPE_TOKEN_1=… CHAPPE_TOKEN_2=… python3 check_browser.py --server 127.0.0.1:7440

The tokens are of two devices of one user (`chappe token --user anna --device one`, `… --device two`). Prints a line per check and at the end
`N checks passed`; exits with 1 if one fails, with 2 if it could not begin. Needs Python 3.11 and Chromium, nothing else.
"""

import argparse
import base64
import contextlib
import functools
import hashlib
import http.server
import json
import os
import pathlib
import random
import select
import signal
import ssl
import string
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse

HERE = pathlib.Path(__file__).resolve().parent
SECONDS = 90

# Quiet, and without a call to anybody. Not --disable-quic: WebTransport runs on it.
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--no-default-browser-check",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-default-apps", "--disable-extensions",
    "--disable-breakpad", "--disable-crash-reporter", "--no-proxy-server", "--metrics-recording-only", "--remote-debugging-pipe",
]

# Chromium reads commands from descriptor 3 and writes answers to 4; this little program puts them there and becomes Chromium.
TRAMPOLINE = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
os.dup2(ends[0], 3); os.dup2(ends[1], 4)
os.execvp(sys.argv[3], sys.argv[3:])
"""


class Failed(Exception):
    """A check failed."""


class Browser:
    """One Chromium with a profile of its own, spoken to through a pipe: JSON messages that end with a zero byte."""

    def __init__(self, program, extra, deadline):
        self.deadline, self.count, self.rest, self.answers = deadline, 0, b"", {}
        self.profile = tempfile.TemporaryDirectory(prefix="chappe-browser-", ignore_cleanup_errors=True)
        to_read, self.to = os.pipe()
        self.fro, fro_write = os.pipe()
        command = [program, *FLAGS, *extra, f"--user-data-dir={self.profile.name}", "about:blank"]
        self.process = subprocess.Popen(
            [sys.executable, "-c", TRAMPOLINE, str(to_read), str(fro_write), *command],
            pass_fds=(to_read, fro_write), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True, env={**os.environ, "HOME": self.profile.name},
        )
        os.close(to_read)
        os.close(fro_write)

    def call(self, method, params=None, session=None):
        self.count += 1
        message = {"id": self.count, "method": method, "params": params or {}}
        if session:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        try:
            while data:
                data = data[os.write(self.to, data):]
        except BrokenPipeError:
            raise Failed(f"{method}: Chromium does not run") from None
        while self.count not in self.answers:
            ready, _, _ = select.select([self.fro], [], [], max(0.0, self.deadline - time.monotonic()))
            data = os.read(self.fro, 1 << 16) if ready else b""
            if not data:
                raise Failed(f"{method}: Chromium {'has ended' if ready else 'does not answer'}")
            *whole, self.rest = (self.rest + data).split(b"\0")
            for answer in map(json.loads, whole):
                if "id" in answer:
                    self.answers[answer["id"]] = answer
        answer = self.answers.pop(self.count)
        if "error" in answer:
            raise Failed(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def close(self):
        with contextlib.suppress(Failed, OSError):
            self.deadline = time.monotonic() + 3
            self.call("Browser.close")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(3)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # its children, or all of it if it hangs
        self.process.wait()
        os.close(self.to)
        os.close(self.fro)
        self.profile.cleanup()


class Page:
    """The page in a tab. Its fields are filled from the address's fragment."""

    def __init__(self, browser, url, prepare=None, **fields):
        self.browser = browser
        self.target = browser.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        self.session = browser.call("Target.attachToTarget", {"targetId": self.target, "flatten": True})["sessionId"]
        if prepare:
            self.call("Page.enable")
            self.call("Page.addScriptToEvaluateOnNewDocument", {"source": prepare})
        self.call("Page.navigate", {"url": f"{url}#{urllib.parse.urlencode(fields)}"})
        self.until("the page is loaded", "document.readyState === 'complete' && location.protocol === 'http:' && !location.hash")

    def call(self, method, params=None):
        return self.browser.call(method, params, self.session)

    def get(self, expression):
        answer = self.call("Runtime.evaluate", {"expression": expression, "returnByValue": True})
        if "exceptionDetails" in answer:
            raise Failed(f"{expression[:80]}: {answer['exceptionDetails'].get('exception', {}).get('description', 'failed')}")
        return answer["result"].get("value")

    def until(self, what, expression, seconds=10.0):
        end = min(time.monotonic() + seconds, self.browser.deadline)
        while not self.get(expression):
            if time.monotonic() > end:
                raise Failed(f"{what}: not within {seconds:.0f} s; the page shows {self.shown()}")
            time.sleep(0.05)

    def shown(self):
        return self.get("['state', 'detail', 'used', 'result'].map((id) => document.getElementById(id)?.textContent).join(' | ')")

    def text(self, field):
        return self.get(f"document.getElementById('{field}').textContent")

    def connect(self):
        self.get("document.querySelector('#connection button').click()")

    def live(self, carrier):
        self.connect()
        self.shows("live")
        if self.text("used") != carrier:
            raise Failed(f"the carrier is {self.text('used')}, not {carrier}")

    def send(self, text, only="", button="send"):
        values = json.dumps({"text": text, "only": only})
        self.get(f"for (const [id, value] of Object.entries({values})) document.getElementById(id).value = value;"
                 f"document.getElementById('{button}').click()")

    def arrived(self, kind, text):
        """How often a text is shown."""
        return self.get(f"[...document.querySelectorAll('#log li[data-kind={kind}] pre')]"
                        f".filter((body) => body.textContent === {json.dumps(text)}).length")

    def arrives(self, kind, text, seconds=10.0):
        self.until(f"{kind} arrives", f"[...document.querySelectorAll('#log li[data-kind={kind}] pre')]"
                   f".some((body) => body.textContent === {json.dumps(text)})", seconds)

    def accepted(self):
        self.until("accepted", "document.getElementById('result').textContent.startsWith('accepted ')")

    def shows(self, state, seconds=10.0):
        self.until(state, f"document.getElementById('state').textContent === '{state}'", seconds)

    def close(self):
        self.browser.call("Target.closeTarget", {"targetId": self.target})


class Files(http.server.SimpleHTTPRequestHandler):
    """The page and its module, and no other file."""

    def do_GET(self):
        if urllib.parse.urlsplit(self.path).path in ("/index.html", "/chappe.js"):
            super().do_GET()
        else:
            self.send_error(404)

    def log_message(self, *_):
        pass


def certificate(server):
    """The hashes of the server's certificate and of its public key, read off a connection; what a browser is told to trust."""
    host, port = server.rsplit(":", 1)
    der = ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate((host.strip("[]"), int(port)), timeout=5))

    def element(at):
        """Where the content of the DER element at `at` begins and ends."""
        length, begin = der[at + 1], at + 2
        if length & 0x80:
            begin += length & 0x7F
            length = int.from_bytes(der[at + 2:begin])
        return begin, begin + length

    at = element(element(0)[0])[0]  # into Certificate, into TBSCertificate
    fields = []
    for _ in range(7):  # version, serial number, signature, issuer, validity, subject, the key
        fields.append((at, at := element(at)[1]))
    key = der[slice(*fields[6])]
    return hashlib.sha256(der).hexdigest(), base64.b64encode(hashlib.sha256(key).digest()).decode()


def claims(token):
    body = token.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))


class Run:
    """What the checks share: the browsers, the pages that stay open, the servers' particulars."""

    def __init__(self, chromium, deadline, listed, unlisted, fields, devices, spki):
        self.chromium, self.deadline, self.listed, self.unlisted = chromium, deadline, listed, unlisted
        self.fields, self.devices, self.spki = fields, devices, spki
        self.browsers, self.one, self.two = {}, None, None

    def browser(self, *flags):
        if flags not in self.browsers:
            self.browsers[flags] = Browser(self.chromium, flags, self.deadline)
        return self.browsers[flags]

    def page(self, number, url=None, **more):
        """A page in a browser that takes the certificate by the hash that the page names, which holds for WebTransport alone."""
        return Page(self.browser(), url or self.listed, **self.fields(number, **more))

    def trusting_page(self, number, url=None, prepare=None, **more):
        """A page in a browser that trusts the server's key, for WebSocket."""
        browser = self.browser(f"--ignore-certificate-errors-spki-list={self.spki}")
        return Page(browser, url or self.listed, prepare, **self.fields(number, **more))

    def pair(self):
        """Two live pages of two devices."""
        if self.one is None or self.two is None:
            raise Failed("not run: no page is connected")
        return self.one, self.two

    def close(self):
        for browser in self.browsers.values():
            browser.close()


def unique(text):
    return f"{text} {random.getrandbits(64):x}"


def connects(run):
    """a page connects over WebTransport"""
    one, two = run.page(0), run.page(1, carrier="webtransport")
    one.live("WebTransport")
    two.live("WebTransport")
    run.one, run.two = one, two
    return f"{one.text('state')}, {one.text('used')}"


def delivers(run):
    """an envelope to the user is accepted, and delivered to both devices once"""
    one, two = run.pair()
    text = unique("hello")
    one.send(text)
    one.accepted()
    one.arrives("envelope", text)
    two.arrives("envelope", text)
    time.sleep(0.3)
    if (one.arrived("envelope", text), two.arrived("envelope", text)) != (1, 1):
        raise Failed("it came more than once")


def delivers_to_one(run):
    """an envelope to one device reaches that one only"""
    one, two = run.pair()
    text, later = unique("for one"), unique("after it")
    one.send(text, only=run.devices[1])
    two.arrives("envelope", text)
    two.send(later)
    one.arrives("envelope", later)
    if one.arrived("envelope", text):
        raise Failed("it reached the other device")


def whispers(run):
    """an ephemeral travels in datagrams"""
    one, two = run.pair()
    for _ in range(5):  # a datagram may be lost
        text = unique("typing")
        one.send(text, only=run.devices[1], button="whisper")
        if one.text("result") != "sent (datagram)":
            raise Failed(f"it was not sent in one: {one.text('result')}")
        with contextlib.suppress(Failed):
            two.arrives("datagram", text, 2)
            return
    raise Failed(f"none came; the page shows {two.shown()}")


def carries_much(run):
    """90,000 bytes pass"""
    one, two = run.pair()
    text = "".join(random.choices(string.ascii_letters + string.digits, k=90_000))
    one.send(text)
    one.accepted()
    two.arrives("envelope", text)
    one.arrives("envelope", text)


def refuses_origin(run):
    """a page of another origin is refused"""
    stranger = run.page(1, run.unlisted, carrier="webtransport")
    stranger.connect()
    stranger.shows("waiting")
    detail = stranger.text("detail")
    time.sleep(1)
    states = stranger.text("state"), run.pair()[1].text("state")
    stranger.close()
    if states[0] not in ("waiting", "connecting") or states[1] != "live":
        raise Failed(f"it is {states[0]}, the device's own page {states[1]}")
    return detail.strip("()")


def supersedes(run):
    """a second page of a device ends the first with 4409, and that one stays away"""
    one, _ = run.pair()
    again = run.page(0, carrier="webtransport")
    again.live("WebTransport")
    try:
        one.shows("superseded", 5)
        if "4409" not in one.text("detail"):
            raise Failed(f"the page shows {one.shown()}")
        time.sleep(1.5)
        states = one.text("state"), again.text("state")
        if states != ("superseded", "live"):
            raise Failed(f"later the first is {states[0]}, the second {states[1]}")
        return one.text("detail").strip("()")
    finally:
        one.close()
        again.close()


def closes_with_code(run):
    """a Ping before the Hello is answered with close 3502, and the page does not come again"""
    if run.two:
        run.two.close()  # else it would ask for its device back
    page = Page(run.browser(), run.listed, PING_FIRST, **run.fields(1, carrier="webtransport"))
    page.connect()
    try:
        page.shows("failed", 5)
        if "3502" not in page.text("detail"):
            raise Failed(f"the page shows {page.shown()}")
        return page.text("detail").strip("()")
    finally:
        page.close()


def over_tcp(run):
    """a page where WebTransport is switched off works over WebSocket"""
    page = run.trusting_page(0, carrier="websocket")
    page.live("WebSocket")
    text = unique("over TCP")
    page.send(text)
    page.arrives("envelope", text)
    page.send(text, button="whisper")
    page.arrives("ephemeral", text)
    page.close()


def superseded_over_tcp(run):
    """over WebSocket, too, a second page of a device ends the first with 4409"""
    first, second = run.trusting_page(0, carrier="websocket"), run.trusting_page(0, carrier="websocket")
    first.live("WebSocket")
    second.live("WebSocket")
    first.shows("superseded", 5)
    if "4409" not in first.text("detail"):
        raise Failed(f"the page shows {first.shown()}")
    first.close()
    second.close()


def without_webtransport(run):
    """a browser without WebTransport falls back to WebSocket"""
    page = run.trusting_page(1, prepare="delete globalThis.WebTransport")
    page.live("WebSocket")
    page.close()


def without_udp(run):
    """where WebTransport gets no answer, a page falls back to WebSocket"""
    page = run.trusting_page(1, prepare="""globalThis.WebTransport = class {
        ready = new Promise(() => {});
        closed = new Promise(() => {});
        close() {}
    };""")
    page.live("WebSocket")
    page.close()


def refuses_origin_over_tcp(run):
    """a page of another origin is refused over WebSocket"""
    page = run.trusting_page(1, run.unlisted, carrier="websocket")
    page.connect()
    page.shows("waiting")
    page.close()


# A stream whose first frame is a Ping.
PING_FIRST = """
const open = WebTransport.prototype.createBidirectionalStream;
WebTransport.prototype.createBidirectionalStream = async function () {
  const stream = await open.call(this);
  const writer = stream.writable.getWriter();
  await writer.write(Uint8Array.of(4, 0x22, 2, 0x08, 1));
  writer.releaseLock();
  return stream;
};
"""

CHECKS = [
    connects, delivers, delivers_to_one, whispers, carries_much, refuses_origin, supersedes, closes_with_code,
    over_tcp, superseded_over_tcp, without_webtransport, without_udp, refuses_origin_over_tcp,
]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True, help="host:port of the server")
    parser.add_argument("--chromium", default="chromium", help="the browser's program [default: chromium]")
    parser.add_argument("--origin-port", type=int, default=21862,
                        help="where the page is served; the server's `origins` holds http://localhost:PORT [default: 21862]")
    parser.add_argument("--certificate-hash", help="SHA-256 of the certificate in hex [default: of the one that the server shows]")
    parser.add_argument("--spki-hash", help="SHA-256 of the certificate's public key in base64 [default: as above]")
    options = parser.parse_args()
    try:
        tokens = [os.environ["CHAPPE_TOKEN_1"], os.environ["CHAPPE_TOKEN_2"]]
        who = [claims(token) for token in tokens]
    except (KeyError, ValueError, IndexError) as error:
        print(f"CHAPPE_TOKEN_1 and CHAPPE_TOKEN_2 must hold tokens ({error})", file=sys.stderr)
        return 2
    if who[0]["sub"] != who[1]["sub"] or who[0]["device"] == who[1]["device"]:
        print("the tokens must be of two devices of one user", file=sys.stderr)
        return 2

    try:
        shown = certificate(options.server)
        hash_, spki = options.certificate_hash or shown[0], options.spki_hash or shown[1]
        handler = functools.partial(Files, directory=HERE)
        files = http.server.ThreadingHTTPServer(("127.0.0.1", options.origin_port), handler)
    except OSError as error:
        print(f"the server's certificate, or a port for the page: {error}", file=sys.stderr)
        return 2
    deadline = time.monotonic() + SECONDS
    threading.Thread(target=files.serve_forever, daemon=True).start()
    listed, unlisted = (f"http://{host}:{options.origin_port}/index.html" for host in ("localhost", "127.0.0.1"))

    def fields(number, **more):
        return {"server": options.server, "user": who[number]["sub"], "device": who[number]["device"], "token": tokens[number],
                "hash": hash_, **more}

    run = Run(options.chromium, deadline, listed, unlisted, fields, [each["device"] for each in who], spki)
    failed = 0
    with contextlib.ExitStack() as stack:
        stack.callback(files.server_close)
        stack.callback(files.shutdown)
        stack.callback(run.close)
        for check in CHECKS:
            try:
                note = check(run)
                print(f"ok   {check.__doc__}{f' ({note})' if note else ''}", flush=True)
            except Failed as failure:
                failed += 1
                print(f"FAIL {check.__doc__}: {failure}", flush=True)
    print(f"{len(CHECKS) - failed} checks passed" + (f", {failed} failed" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    sys.exit(main())
