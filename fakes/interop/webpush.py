"""Web Push by pywebpush (over requests, HTTP/1.1), which encrypts by http-ece and signs by py-vapid."""

import json
import os
import ssl

import httpx
import requests
from py_vapid import Vapid02
from pywebpush import WebPusher, WebPushException, webpush

CLAIMS = {"sub": "mailto:push@example.org"}


def run(check, certificate, given):
    with open(given["subscriptions"], encoding="utf-8") as file:
        subscriptions = json.load(file)
    live, dead = subscriptions["live"], subscriptions["dead"]
    session = requests.Session()
    session.verify = certificate
    session.trust_env = False
    key = Vapid02()
    key.generate_keys()

    def send(subscription, data="sync", claims=CLAIMS, **headers):
        try:
            return webpush(
                {"endpoint": subscription["endpoint"], "keys": subscription["keys"]},
                data,
                vapid_private_key=key,
                vapid_claims=dict(claims),
                ttl=60,
                headers=headers,
                requests_session=session,
                timeout=20,
            )
        except WebPushException as error:
            return error.response

    def refused(name, status, reason, answer):
        told = (answer.status_code, answer.json().get("error"))
        check(told == (status, reason), f"pywebpush: {name}", told)

    answer = send(live[0], "sync", Urgency="high", Topic="collapse")
    check(answer.status_code == 201 and answer.headers["location"], "pywebpush: a message passes", answer.text)
    answer = send(live[1], "grüße " + "x" * 3000)
    check(answer.status_code == 201, "pywebpush: a long message passes", answer.text)
    refused("a dead subscription", 410, "Gone", send(dead))
    refused("another browser's keys", 400, "Undecryptable", send(live[0] | {"keys": live[1]["keys"]}))
    refused("another service's audience", 403, "BadVapid", send(live[0], claims=CLAIMS | {"aud": "https://other"}))
    refused("an urgency of nobody", 400, "BadUrgency", send(live[0], Urgency="now"))
    refused("a topic of 33 letters", 400, "BadTopic", send(live[0], Topic="x" * 33))
    refused("too long", 413, "PayloadTooLarge", send(live[0], os.urandom(4090).hex()[:4090]))
    over_http2(check, certificate, live[2], key)


def over_http2(check, certificate, subscription, key):
    """The same bytes by another carrier."""
    body = WebPusher({"endpoint": subscription["endpoint"], "keys": subscription["keys"]}).encode(b"sync over HTTP/2")
    origin = subscription["endpoint"].split("/push/")[0]
    headers = key.sign(CLAIMS | {"aud": origin}) | {"ttl": "0", "content-encoding": "aes128gcm"}
    with httpx.Client(http2=True, verify=ssl.create_default_context(cafile=certificate)) as client:
        answer = client.post(subscription["endpoint"], headers=headers, content=body["body"])
        told = (answer.http_version, answer.status_code)
        check(told == ("HTTP/2", 201), "httpx: what pywebpush encrypted passes over HTTP/2", answer.text)
        answer = client.post(subscription["endpoint"], headers=headers | {"content-encoding": "aesgcm"}, content=body["body"])
        check(answer.status_code == 415, "httpx: another content encoding", answer.text)
        del headers["ttl"]
        answer = client.post(subscription["endpoint"], headers=headers, content=body["body"])
        check(answer.json()["error"] == "MissingTtl", "httpx: no TTL", answer.text)
