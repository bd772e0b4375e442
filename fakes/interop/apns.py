"""APNs by aioapns (its own HTTP/2 on hyper-h2, its own JWT by PyJWT), and by httpx with tokens of PyJWT."""

import asyncio
import ssl
import time
import uuid
from urllib.parse import urlparse

import httpx
import jwt
from aioapns import APNs, NotificationRequest, PushType


def trust(certificate):
    """TLS that trusts the fakes alone. aioapns does not offer ALPN by itself; HTTP/2 demands it."""
    context = ssl.create_default_context(cafile=certificate)
    context.set_alpn_protocols(["h2"])
    return context


def client(certificate, given, key_id=None):
    with open(given["key"], encoding="utf-8") as file:
        key = file.read()
    made = APNs(
        key=key,
        key_id=key_id or given["key_id"],
        team_id=given["team_id"],
        topic=given["topics"][0],
        max_connections=1,
        max_connection_attempts=1,
        ssl_context=trust(certificate),
    )
    address = urlparse(given["url"])
    # The library knows Apple's addresses only.
    base = made.pool.protocol_class
    made.pool.protocol_class = type("Fake", (base,), {"APNS_SERVER": address.hostname, "APNS_PORT": address.port})
    return made


def alert(token, **more):
    return NotificationRequest(
        device_token=token, message={"aps": {"alert": "sync"}}, push_type=PushType.ALERT, priority=10, **more
    )


async def run(check, certificate, given):
    live = given["tokens"]
    apns = client(certificate, given)
    answer = await apns.send_notification(alert(live[0], time_to_live=60, collapse_key="c"))
    check(answer.is_successful, "aioapns: an alert passes", answer.description)
    background = NotificationRequest(
        device_token=live[1], message={"aps": {"content-available": 1}}, push_type=PushType.BACKGROUND, priority=5
    )
    answer = await apns.send_notification(background)
    check(answer.is_successful, "aioapns: a background push passes", answer.description)
    answer = await apns.send_notification(alert(given["dead_token"]))
    told = (answer.status, answer.description, answer.timestamp)
    check(told == ("410", "Unregistered", given["dead_since_ms"]), "aioapns: a dead token is told", told)
    answer = await apns.send_notification(alert("x" * 64))
    check(answer.description == "BadDeviceToken", "aioapns: no token", answer.description)
    answer = await apns.send_notification(alert(live[0], apns_topic="org.other"))
    check(answer.description == "TopicDisallowed", "aioapns: another's topic", answer.description)
    answers = await asyncio.gather(*(apns.send_notification(alert(live[2])) for _ in range(200)))
    check(all(answer.is_successful for answer in answers), "aioapns: 200 at once, by the streams that SETTINGS allow")
    stranger = client(certificate, given, key_id="OTHERKEY00")
    answer = await stranger.send_notification(alert(live[0]))
    check(answer.description == "InvalidProviderToken", "aioapns: another's key", answer.description)
    for one in (apns, stranger):
        one.pool.close()
    await headers(check, certificate, given)


async def headers(check, certificate, given):
    """What aioapns does not let one get wrong."""
    with open(given["key"], encoding="utf-8") as file:
        key = file.read()

    def bearer(age):
        claims = {"iss": given["team_id"], "iat": int(time.time()) - age}
        return "bearer " + jwt.encode(claims, key, algorithm="ES256", headers={"kid": given["key_id"]})

    url = f"{given['url']}/3/device/{given['tokens'][0]}"
    right = {"authorization": bearer(0), "apns-topic": given["topics"][0], "apns-push-type": "alert"}
    body = {"aps": {"alert": "sync"}}
    message = str(uuid.uuid4())
    cases = [
        ("all in order", right | {"apns-id": message}, 200, None),
        ("expired token", right | {"authorization": bearer(3700)}, 403, "ExpiredProviderToken"),
        ("token from the future", right | {"authorization": bearer(-100)}, 403, "InvalidProviderToken"),
        ("token renewed too soon", right | {"authorization": bearer(5)}, 429, "TooManyProviderTokenUpdates"),
        ("no token", right | {"authorization": ""}, 403, "InvalidProviderToken"),
        ("push type of nobody", right | {"apns-push-type": "wake"}, 400, "InvalidPushType"),
        ("priority 7", right | {"apns-priority": "7"}, 400, "BadPriority"),
        ("collapse id of 65 bytes", right | {"apns-collapse-id": "x" * 65}, 400, "BadCollapseId"),
    ]
    async with httpx.AsyncClient(http2=True, verify=trust(certificate)) as client:
        for name, sent, status, reason in cases:
            answer = await client.post(url, headers=sent, json=body)
            told = (answer.http_version, answer.status_code, answer.json().get("reason") if answer.content else None)
            check(told == ("HTTP/2", status, reason), f"httpx: {name}", told)
            if status == 200:
                check(answer.headers["apns-id"] == message, "httpx: apns-id comes back")
