"""Renders and checks the manifests of k8s/. Runs in the Python that has PyYAML and kubernetes-validate."""

import copy
import re
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor

import kubernetes_validate
import yaml

from . import kubernetes, policies, process
from .place import ROOT, USAGE, Refusal, say

CHART, KUSTOMIZE = ROOT / "k8s/chart", ROOT / "k8s/kustomize"
VERSIONS = ("1.35", "1.36", "1.37")
# What is rendered with which values files; Kustomize has an overlay of the same name, and its base for the default.
SETTINGS = {
    "default": [],
    "dev": ["values/dev.yaml"],
    "production": ["values/production.yaml"],
    "multi-zone": ["values/production.yaml", "values/multi-zone.yaml"],
}
# Values files without an overlay.
EXTRAS = ["values/production.yaml", "values/extras.yaml"]
# Of these the API has no schema here.
CUSTOM = {"ScaledObject", "Certificate", "PodMonitor", "PrometheusRule"}
# Values that the chart must refuse, and a word of the reason.
REFUSED = [
    ("image.tag=latest", "image"), ("image.digest=abc", "digest"), ("cluster=UPPER", "cluster"), ("nats.urls={http://nats}", "urls"),
    ("nats.urls={nats://user:secret@nats:4222}", "urls"), ("redis.url=redis://user:secret@redis:6379/0", "url"),
    ("cql.url=cql://db:9042", "url"), ("nats.credentials.kind=nkey_seed", "secret"), ("nats.credentials.kind=password", "kind"),
    ("gateway.replicas=0", "replicas"), ("gateway.replica=3", "replica"), ("gateway.sessionsMax=many", "sessionsMax"),
    ("gateway.service.type=ExternalName", "type"), ("gateway.drain.budgetSeconds=0", "budgetSeconds"),
    ("gateway.autoscaling.kind=vpa", "kind"), ("gateway.tls.certManager.enabled=true", "certManager"),
    ("gateway.settings.nats\\.password=x", "nats.password"),
    ("gateway.origins={chat.example}", "origins"), ("gateway.proxyProtocolFrom={lb.example}", "proxyProtocolFrom"),
    ("traces.otlp=collector:4318", "otlp"), ("traces.otlp=https://user:secret@collector", "otlp"), ("traces.oneIn=0", "oneIn"), ("token.algorithm=none", "algorithm"), ("keys.secret=", "secret"),
    ("router.resources.limits.memory=lots", "memory"), ("pusher.autoscaling.oldestWakeSeconds=0", "oldestWakeSeconds"),
    ("podDisruptionBudgets.maxUnavailable=0", "maxUnavailable"), ("podMonitor.interval=often", "interval"), ("unknown=1", "unknown"),
]


def objects(text):
    return [one for one in yaml.safe_load_all(text) if one]


def helm(values, *words):
    files = [word for name in values for word in ("--values", CHART / name)]
    code, out, errors = process.run(kubernetes.program("helm"), "template", "chappe", CHART, "--namespace", "chappe", *files, *words)
    return (objects(out), "") if code == 0 else (None, errors.strip())


def kustomize(name):
    return built(KUSTOMIZE / ("base" if name == "default" else f"overlays/{name}"))


def built(folder):
    code, out, errors = process.run(kubernetes.program("kubectl"), "kustomize", folder)
    return (objects(out), "") if code == 0 else (None, errors.strip())


def called(one):
    return f"{one['kind']} {one['metadata']['name']}"


def lint(name):
    files = [word for one in SETTINGS.get(name, EXTRAS) for word in ("--values", CHART / one)]
    code, out, errors = process.run(kubernetes.program("helm"), "lint", "--strict", CHART, *files)
    return [] if code == 0 else [line for line in (out + errors).splitlines() if "ERROR" in line or "WARN" in line]


def valid(all_objects, versions=VERSIONS):
    """Against the API's own schemas, where a field that does not exist is an error."""
    found = set()
    for version in versions:
        for one in all_objects:
            if one["kind"] in CUSTOM:
                continue
            try:
                kubernetes_validate.validate(one, version, True)
            except kubernetes_validate.ValidationError as error:
                found.add(f"{version}: {called(one)}: {'.'.join(str(step) for step in error.path)}: {error.message[:200]}")
            except (kubernetes_validate.SchemaNotFoundError, kubernetes_validate.VersionNotSupportedError) as error:
                found.add(f"{version}: {called(one)}: {error}")
    return sorted(found)


def refused():
    """Values that must not pass."""
    found = []
    with ThreadPoolExecutor(max_workers=2) as pool:
        for (value, word), (rendered, errors) in zip(REFUSED, pool.map(lambda one: helm([], "--set", one[0]), REFUSED)):
            if rendered is not None:
                found.append(f"--set {value} is taken")
            elif word not in errors:
                found.append(f"--set {value} is refused without a word of {word}: {errors[:200]}")
    return found


def normal(all_objects):
    """By kind and name, without what Helm and Kustomize do differently on purpose: labels that name the tool, the test of `helm test`, and how a
    change of the settings becomes a rollout (an annotation with their digest, or a name that ends in it)."""
    text = yaml.safe_dump_all(all_objects)
    for one in all_objects:
        if one["kind"] == "ConfigMap":
            text = text.replace(one["metadata"]["name"], re.sub(r"-[a-z0-9]{10}$", "", one["metadata"]["name"]))
    result = {}
    for one in objects(text):
        if "helm.sh/hook" in one["metadata"].get("annotations", {}) or one["metadata"]["name"].endswith("-doctor"):
            continue
        for meta in (one["metadata"], (one.get("spec") or {}).get("template", {}).get("metadata", {})):
            for label in ("helm.sh/chart", "app.kubernetes.io/managed-by"):
                meta.get("labels", {}).pop(label, None)
            meta.get("annotations", {}).pop("chappe.dev/settings", None)
            if not meta.get("annotations", True):
                del meta["annotations"]
        one["metadata"].pop("namespace", None)
        _in_order(one)
        result[called(one)] = one
    return result


def _in_order(value):
    """Lists whose order says nothing: Kustomize puts in front what a patch adds."""
    for key, each in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        _in_order(each)
        if key in ("volumes", "volumeMounts"):
            each.sort(key=lambda one: one["name"])
        if key == "topologySpreadConstraints":
            each.sort(key=lambda one: one["topologyKey"])


def differences(path, one, other):
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted(one.keys() | other.keys(), key=str):
            yield from differences(f"{path}.{key}", one.get(key), other.get(key))
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for index, (left, right) in enumerate(zip(one, other)):
            yield from differences(f"{path}[{index}]", left, right)
    elif one != other:
        yield f"{path}: Helm has {str(one)[:120]!r}, Kustomize {str(other)[:120]!r}"


def same(from_helm, from_kustomize):
    left, right = normal(from_helm), normal(from_kustomize)
    found = [f"{name}: only Helm has it" for name in left.keys() - right.keys()] + [f"{name}: only Kustomize has it" for name in right.keys() - left.keys()]
    for name in left.keys() & right.keys():
        found += differences(name, left[name], right[name])
    return sorted(found)


def base():
    """The files of k8s/kustomize/base, by path: what the chart makes of its defaults."""
    rendered, errors = helm([])
    if rendered is None:
        raise Refusal(errors)
    made, files = "# Made by dev/k8s render from the chart; change the chart and run it.\n", {}
    plain = normal(copy.deepcopy(rendered))
    maps = [one for one in plain.values() if one["kind"] == "ConfigMap"]
    for one in maps:
        for name, text in one["data"].items():
            files[f"settings/{name}"] = text
    by_role = {}
    for one in plain.values():
        if one["kind"] != "ConfigMap":
            by_role.setdefault(one["metadata"]["labels"]["app.kubernetes.io/component"], []).append(one)
    for role, some in by_role.items():
        files[f"{role}.yaml"] = made + yaml.safe_dump_all(some, sort_keys=False, width=160)
    generator = [{"name": one["metadata"]["name"], "files": [f"settings/{name}" for name in one["data"]], "options": {"labels": one["metadata"]["labels"]}} for one in maps]
    index = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "resources": sorted(f"{role}.yaml" for role in by_role),
             "configMapGenerator": generator}
    files["kustomization.yaml"] = made + yaml.safe_dump(index, sort_keys=False, width=160)
    return files


def fresh():
    there = {str(path.relative_to(KUSTOMIZE / "base")): path.read_text() for path in (KUSTOMIZE / "base").rglob("*") if path.is_file()}
    files = base()
    return [f"k8s/kustomize/base/{name} is not what dev/k8s render writes" for name in sorted(there.keys() | files.keys()) if there.get(name) != files.get(name)]


def overlays():
    """The settings files of the overlays that are not the base's, by path below k8s/kustomize/overlays."""
    usual, files = base(), {}
    for name, values in SETTINGS.items():
        rendered, errors = helm(values)
        if rendered is None:
            raise Refusal(errors)
        for one in rendered:
            # Several zones change nothing in the settings of production, on which that overlay stands.
            for file, text in one.get("data", {}).items() if one["kind"] == "ConfigMap" and name in ("dev", "production") else ():
                if text != usual.get(f"settings/{file}"):
                    files[f"{name}/settings/{file}"] = text
    return files


def render():
    written = {f"base/{name}": text for name, text in base().items()} | {f"overlays/{name}": text for name, text in overlays().items()}
    for name, text in written.items():
        path = KUSTOMIZE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        print(path.relative_to(ROOT))


def _told(all_objects):
    """Whether the settings of the roles say what values/extras.yaml asks for."""
    settings = {name: tomllib.loads(text) for one in all_objects if one["kind"] == "ConfigMap" for name, text in one["data"].items()}
    traces = {"otlp": "https://otel-collector.observability:4318", "one_in": 100,
              "authority": "/etc/chappe/traces-authority/ca.crt", "authorization": "/etc/chappe/traces/authorization"}
    limits = settings["gateway.toml"]["limits"]
    expected = {
        "gateways' traces": (settings["gateway.toml"].get("traces"), traces),
        "routers' traces": (settings["router.toml"].get("traces"), traces),
        "pushers' traces": (settings["pusher.toml"].get("traces"), None),
        "limits.proxies": (limits.get("proxies"), ["10.20.0.0/24", "2001:db8:20::/64"]),
        "limits.source_handshakes_per_second": (limits.get("source_handshakes_per_second"), 200),
    }
    return [f"{what}: {value}" for what, (value, wanted) in expected.items() if value != wanted]


def check():
    failed = 0

    def told(title, began, found):
        nonlocal failed
        print(f"{'FAILED' if found else 'ok':<6} {title} ({time.monotonic() - began:.1f} s)", flush=True)
        for line in found[:20]:
            say(f"  {line}")
        failed += bool(found)

    began = time.monotonic()
    told("k8s/kustomize/base is up to date", began, fresh())
    custom, count = set(), 0
    for name in SETTINGS:
        began = time.monotonic()
        (from_helm, helm_errors), (from_kustomize, kustomize_errors) = helm(SETTINGS[name]), kustomize(name)
        told(f"{name}: renders", began, lint(name) + [errors for errors in (helm_errors, kustomize_errors) if errors])
        if from_helm is None or from_kustomize is None:
            continue
        custom |= {one["kind"] for one in from_helm if one["kind"] in CUSTOM}
        count += len(from_helm)
        began = time.monotonic()
        told(f"{name}: valid for Kubernetes {', '.join(VERSIONS)}", began, valid(from_helm))
        began = time.monotonic()
        told(f"{name}: policies", began, policies.complaints(from_helm))
        began = time.monotonic()
        told(f"{name}: Helm and Kustomize make the same", began, same(from_helm, from_kustomize))
    began = time.monotonic()
    extras, errors = helm(EXTRAS)
    found = lint("extras") + ([errors] if extras is None else valid(extras) + policies.complaints(extras) + _told(extras))
    told("extras: renders, valid, policies, in the settings", began, found)
    began = time.monotonic()
    (loading, errors), redis = built(ROOT / "k8s/loadtest"), objects((ROOT / "k8s/dependencies/redis.yaml").read_text())
    told("the load test and the example of Redis: valid", began, [errors] if loading is None else valid(loading + redis))
    began = time.monotonic()
    told(f"{len(REFUSED)} wrong values are refused", began, refused())
    print(f"{count} objects; without a schema here: {', '.join(sorted(custom))}")
    return 1 if failed else 0


def run(words):
    if words[0] == "check":
        return check()
    if words[0] == "render":
        return render() or 0
    if words[0] == "self-test":
        rendered, errors = helm(SETTINGS["production"])
        if rendered is None:
            raise Refusal(errors)
        return policies.self_test(rendered, lambda broken: valid(broken, VERSIONS[-1:]) + policies.complaints(broken))
    if words[1] not in SETTINGS:
        raise Refusal(f"no {words[1]}; there is {', '.join(SETTINGS)}", USAGE)
    rendered, errors = helm(SETTINGS[words[1]])
    if rendered is None:
        raise Refusal(errors)
    print(yaml.safe_dump_all(rendered, sort_keys=False, width=160))
    return 0
