"""Prometheus and promtool, to check rules and dashboards with. No part of a cluster: nothing here runs beside it."""

import hashlib
import os
import platform
import re
import shutil
from pathlib import Path

from . import debian, place, process
from .place import Refusal

VERSION = "2.42.0"
BUILD = f"{VERSION}+ds-5+deb12u1"  # Debian 12's
PROGRAMS = ("prometheus", "promtool")
# Of the programs in that build. On other machines than these APT's signatures are all there is.
SHA256 = {
    ("x86_64", "prometheus"): "814f078f68af9ad7b644fd25299211399c8f19ad9adf8b0a1b86a3bd9755baa0",
    ("x86_64", "promtool"): "14d9c8acdc5d1321dc2092400111c586f09ac350f23f2383d1679b2bf256e583",
}


def _own():
    """A folder with both programs that the person wants instead of the pinned ones."""
    given = os.environ.get("CHAPPE_TEST_DEPS_PROMETHEUS")
    return Path(given) if given else None


def program(name):
    """Where `prometheus` or `promtool` is."""
    return (_own() or place.installed_dir("prometheus", VERSION) / "bin") / name


def installed():
    return all(program(name).is_file() for name in PROGRAMS)


def version():
    _, told, errors = process.run(program("promtool"), "--version")
    found = re.search(r"version (\d[\d.]*)", told + errors)
    return found.group(1) if found else "unknown"


def install():
    own = _own()
    if own:
        raise Refusal(f"CHAPPE_TEST_DEPS_PROMETHEUS={own}: there is no {' and no '.join(n for n in PROGRAMS if not (own / n).is_file())}")
    if shutil.which("apt-get") is None:
        raise Refusal("prometheus: apt-get is not on PATH\n  do: name a folder with prometheus and promtool 2.x in CHAPPE_TEST_DEPS_PROMETHEUS")
    with place.whole(place.installed_dir("prometheus", VERSION)) as folder:
        # The libraries that the package names are for its web page.
        trouble = debian.unpacked(folder, "prometheus", BUILD, libraries=False)
        if trouble:
            raise Refusal(f"prometheus: {trouble}\n  do: name a folder with prometheus and promtool 2.x in CHAPPE_TEST_DEPS_PROMETHEUS")
        (folder / "bin").mkdir()
        for name in PROGRAMS:
            fetched = folder / "root/usr/bin" / name
            digest, wanted = hashlib.sha256(fetched.read_bytes()).hexdigest(), SHA256.get((platform.machine(), name))
            if wanted not in (None, digest):
                raise Refusal(f"prometheus: {name} of {BUILD} has SHA-256 {digest}, wanted {wanted}")
            os.rename(fetched, folder / "bin" / name)
        shutil.rmtree(folder / "root")
