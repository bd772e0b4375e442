"""FCM by google-auth's own flow for service accounts (over requests, HTTP/1.1), messages by httpx over HTTP/2."""

import ssl

import httpx
import requests
from google.auth.exceptions import RefreshError
from google.auth.transport.requests import Request
from google.oauth2 import service_account

SCOPE = "https://www.googleapis.com/auth/firebase.messaging"
FCM_ERROR = "type.googleapis.com/google.firebase.fcm.v1.FcmError"


def login(check, certificate, path):
    session = requests.Session()
    session.verify = certificate
    session.trust_env = False
    credentials = service_account.Credentials.from_service_account_file(path, scopes=[SCOPE])
    credentials.refresh(Request(session))
    check(credentials.valid and credentials.token, "google-auth: a service account gets an access token")
    for name, wrong, reason in [
        ("scope of another product", credentials.with_scopes(["https://www.googleapis.com/auth/drive"]), "invalid_scope"),
        ("a subject to impersonate", credentials.with_subject("ben@example.org"), "unauthorized_client"),
    ]:
        try:
            wrong.refresh(Request(session))
            told = "passed"
        except RefreshError as error:
            told = str(error)
        check(reason in told, f"google-auth: {name}", told)
    return credentials.token


def error_of(answer):
    error = answer.json()["error"]
    codes = [detail["errorCode"] for detail in error.get("details", []) if detail["@type"] == FCM_ERROR]
    return answer.status_code, error["status"], codes


def run(check, certificate, given):
    token = login(check, certificate, given["service_account"])
    url = f"{given['url']}/v1/projects/{given['project']}/messages:send"
    bearer = {"authorization": f"Bearer {token}"}
    live = given["tokens"][0]
    wake = {"data": {"k": "sync"}, "android": {"priority": "HIGH", "ttl": "60s", "collapse_key": "c"}}
    invalid = (400, "INVALID_ARGUMENT", [])
    cases = [
        ("a dead token", bearer, wake | {"token": given["dead_token"]}, (404, "NOT_FOUND", ["UNREGISTERED"])),
        ("a number in data", bearer, {"token": live, "data": {"k": 1}}, invalid),
        ("a field of the protocol that is no more", bearer, {"to": live}, invalid),
        ("a ttl without unit", bearer, {"token": live, "android": {"ttl": "60"}}, invalid),
        ("no token of a device", bearer, wake | {"token": "no token"}, (400, "INVALID_ARGUMENT", ["INVALID_ARGUMENT"])),
        ("no access token", {}, wake | {"token": live}, (401, "UNAUTHENTICATED", [])),
        ("a made-up access token", {"authorization": "Bearer ya29.x"}, wake | {"token": live}, (401, "UNAUTHENTICATED", [])),
    ]
    with httpx.Client(http2=True, verify=ssl.create_default_context(cafile=certificate)) as client:
        answer = client.post(url, headers=bearer, json={"message": wake | {"token": live}})
        named = answer.json().get("name", "")
        told = (answer.http_version, answer.status_code, named.startswith(f"projects/{given['project']}/messages/"))
        check(told == ("HTTP/2", 200, True), "httpx: a message passes", answer.text)
        for name, headers, message, wanted in cases:
            told = error_of(client.post(url, headers=headers, json={"message": message}))
            check(told == wanted, f"httpx: {name}", told)
