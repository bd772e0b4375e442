"""Drives the fakes with clients that somebody else wrote, and says what holds.

Takes fakes.json, as push-fakes or chappe_fakes::Kit writes it.
"""

import argparse
import asyncio
import json
import sys

import apns
import fcm
import webpush

SECONDS_MAX = 60


class Checks:
    def __init__(self):
        self.passed = self.failed = 0

    def __call__(self, holds, name, seen=""):
        print(("ok    " if holds else "FAIL  ") + name + (f": {seen}" if not holds and seen != "" else ""), flush=True)
        self.passed, self.failed = self.passed + bool(holds), self.failed + (not holds)


async def run(check, fakes):
    async with asyncio.timeout(SECONDS_MAX):
        await apns.run(check, fakes["certificate"], fakes["apns"])
    fcm.run(check, fakes["certificate"], fakes["fcm"])
    webpush.run(check, fakes["certificate"], fakes["webpush"])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fakes", required=True, help="fakes.json")
    with open(parser.parse_args().fakes, encoding="utf-8") as file:
        fakes = json.load(file)
    check = Checks()
    asyncio.run(run(check, fakes))
    print(f"{check.passed} checks passed, {check.failed} failed")
    sys.exit(check.failed != 0)


if __name__ == "__main__":
    main()
