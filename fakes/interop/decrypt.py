"""Reads a Web Push message as a browser would, by http-ece, and checks its VAPID header by py-vapid and PyJWT.

Standard input is a JSON object, or several, one per line (keys are secrets: not for arguments):
  private_key    the subscription's, 32 bytes          } base64url
  auth           the subscription's, 16 bytes          } without
  body           what was sent                         } padding
  authorization  the header that was sent; optional
  audience       the push service's origin; with authorization
Standard output is one JSON object per line: plain (base64url), text, and claims if there was an authorization.
Exits with 1 at the first that does not hold, and says why on standard error.
"""

import base64
import json
import re
import sys

import http_ece
import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from py_vapid import Vapid02


def raw(text):
    if not re.fullmatch("[A-Za-z0-9_-]*", text):
        raise ValueError("not base64url without padding")
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def decrypt(given):
    key = ec.derive_private_key(int.from_bytes(raw(given["private_key"]), "big"), ec.SECP256R1())
    return http_ece.decrypt(raw(given["body"]), private_key=key, auth_secret=raw(given["auth"]), version="aes128gcm")


def verify(authorization, audience):
    scheme, _, rest = authorization.partition(" ")
    if scheme.lower() != "vapid":
        raise ValueError("the scheme is not vapid")
    parts = dict(part.strip().split("=", 1) for part in rest.split(","))
    # py-vapid's own form has no space after the comma.
    if not Vapid02.verify(f"vapid t={parts['t']},k={parts['k']}"):
        raise ValueError("py-vapid: the signature does not hold")
    point = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), raw(parts["k"]))
    return jwt.decode(
        parts["t"], point, algorithms=["ES256"], audience=audience, options={"require": ["aud", "exp", "sub"]}
    )


def main():
    for line in filter(str.strip, sys.stdin):
        given = json.loads(line)
        try:
            plain = decrypt(given)
            told = {"plain": base64.urlsafe_b64encode(plain).rstrip(b"=").decode(), "text": plain.decode(errors="replace")}
            if given.get("authorization"):
                told["claims"] = verify(given["authorization"], given["audience"])
        except Exception as error:  # whatever the libraries say
            print(f"decrypt.py: {type(error).__name__}: {error}", file=sys.stderr)
            sys.exit(1)
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
