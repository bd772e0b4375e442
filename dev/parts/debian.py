"""Programs from Debian packages, unpacked and not installed. Root is not needed; APT checks its signatures."""

import os
import re
import shutil

from . import process

NEVER_FETCHED = {"libc6", "adduser", "debconf", "init-system-helpers", "lsb-base"}


def _unpacked(folder, package, version, libraries, options):
    _, offered, _ = process.run("apt-cache", *options, "madison", package)
    versions = [line.split("|")[1].strip() for line in offered.splitlines() if "|" in line]
    pinned = [one for one in versions if re.search(rf"(^|:){re.escape(version)}(\D|$)", one)]
    if not pinned:
        return f"apt offers {', '.join(dict.fromkeys(versions)) or f'no {package}'}, wanted {version}"
    code, _, errors = process.run("apt-get", *options, "download", f"{package}={pinned[0]}", cwd=folder)
    if code != 0:
        return f"apt-get download: {process.last_line(errors)}"
    (file,) = folder.glob(f"{package}_*.deb")
    _, needs, _ = process.run("dpkg-deb", "-f", file, "Depends") if libraries else (0, "", "")
    names = [re.split(r"[ |(:]", need.strip())[0] for need in needs.split(",")]
    for name in names:
        _, have, _ = process.run("dpkg-query", "-W", "-f", "${db:Status-Status}", name)
        if name and name not in NEVER_FETCHED and have != "installed":
            code, _, errors = process.run("apt-get", *options, "download", name, cwd=folder)
            if code != 0:
                return f"apt-get download {name}: {process.last_line(errors)}"
    for file in folder.glob("*.deb"):
        process.run("dpkg-deb", "-x", file, folder / "root")
    return None


def unpacked(folder, package, version, libraries=True):
    """Unpacks a package of that version, and (unless not wanted) the libraries that it names and this machine lacks, in `folder`/root: by
    the machine's package lists; where they are missing or old, by lists of our own. None if it worked, else why not."""
    sandbox = ["-o", "APT::Sandbox::User=root"] if os.getuid() == 0 else []
    trouble = _unpacked(folder, package, version, libraries, sandbox)
    if trouble:
        lists, cache = folder / "lists", folder / "cache"
        (lists / "partial").mkdir(parents=True)
        (cache / "archives" / "partial").mkdir(parents=True)
        own = [*sandbox, "-o", f"Dir::State::lists={lists}", "-o", f"Dir::Cache={cache}"]
        process.run("apt-get", *own, "update")
        for leftover in folder.glob("*.deb"):
            leftover.unlink()
        trouble = _unpacked(folder, package, version, libraries, own)
        shutil.rmtree(lists)
        shutil.rmtree(cache)
    for file in folder.glob("*.deb"):
        file.unlink()
    return trouble
