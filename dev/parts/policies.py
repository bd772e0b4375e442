"""Our own rules for manifests: what a restricted namespace asks, and what the processes need to end and to be found well."""

import copy
import re
import tomllib

ROLES = ("gateway", "router", "pusher")
SECONDS_BEYOND = 5  # that a pod has beyond preStop and drain, at least: for last answers and the store
SECRET_WORDS = re.compile(r"(password|secret|token|seed|key)=[^/]", re.I)


def pod_of(one):
    """The pod's template and its metadata, if it makes pods."""
    if one["kind"] == "Pod":
        return one["spec"], one["metadata"]
    template = (one.get("spec") or {}).get("template", {})
    return (template["spec"], template.get("metadata", {})) if "containers" in template.get("spec", {}) else (None, None)


def complaints(everything):
    """What is wrong with these objects, a line each."""
    found = []
    for one in everything:
        name = f"{one['kind']} {one['metadata']['name']}"
        pod, meta = pod_of(one)
        if pod:
            found += [f"{name}: {line}" for line in _pod(pod) + _selected(one, meta, everything)]
        if one["kind"] == "Deployment":
            found += [f"{name}: {line}" for line in _deployment(one, pod, everything)]
        if one["kind"] == "Secret":
            found.append(f"{name}: no Secret is made here; they are brought")
        if one["kind"] == "ServiceAccount" and one.get("automountServiceAccountToken") is not False:
            found.append(f"{name}: its token is mounted")
        if one["kind"] == "HorizontalPodAutoscaler" and one["spec"].get("behavior", {}).get("scaleDown", {}).get("stabilizationWindowSeconds", 0) < 600:
            found.append(f"{name}: scales in sooner than after ten minutes")
    return found


def _pod(pod):
    found, context = [], pod.get("securityContext", {})
    if context.get("runAsNonRoot") is not True or not context.get("runAsUser"):
        found.append("may run as root")
    if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        found.append("no seccomp profile")
    if pod.get("automountServiceAccountToken") is not False:
        found.append("a token of the API is mounted")
    if pod.get("serviceAccountName", "default") == "default":
        found.append("no service account of its own")
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(key):
            found.append(f"{key} is on")
    volumes = {one["name"]: one for one in pod.get("volumes", [])}
    for one in volumes.values():
        if not {"configMap", "secret", "emptyDir", "projected", "persistentVolumeClaim"} & one.keys():
            found.append(f"volume {one['name']} is of a kind that a restricted namespace refuses")
        if "secret" in one and one["secret"].get("defaultMode", 0o644) & 0o007:
            found.append(f"volume {one['name']}: everybody may read it")
    for box in pod["containers"]:
        found += [f"{box['name']}: {line}" for line in _container(box, volumes)]
    return found


def _container(box, volumes):
    found, context = [], box.get("securityContext", {})
    if context.get("allowPrivilegeEscalation") is not False:
        found.append("may gain privileges")
    if context.get("readOnlyRootFilesystem") is not True:
        found.append("its file system can be written to")
    if context.get("capabilities", {}).get("drop") != ["ALL"] or context.get("capabilities", {}).get("add"):
        found.append("keeps capabilities")
    image = box["image"]
    if "@sha256:" not in image and (":" not in image.rsplit("/", 1)[-1] or image.endswith(":latest")):
        found.append(f"image {image} can change under it")
    resources = box.get("resources", {})
    for part, names in (("requests", ("cpu", "memory")), ("limits", ("memory",))):
        found += [f"no {part} of {name}" for name in names if name not in resources.get(part, {})]
    if "cpu" in resources.get("limits", {}):
        found.append("a limit of CPU makes it stand still in a storm")
    found += [f"environment {one['name']} comes from a Secret" for one in box.get("env", []) if "secretKeyRef" in one.get("valueFrom", {})]
    found += ["its environment is a Secret" for one in box.get("envFrom", []) if "secretRef" in one]
    told = [*box.get("args", []), *(f"{one['name']}={one.get('value', '')}" for one in box.get("env", []))]
    found += [f"{word.split('=')[0]} looks like a secret among its arguments or environment" for word in told if SECRET_WORDS.search(word)]
    for mount in box.get("volumeMounts", []):
        if mount["name"] not in volumes:
            found.append(f"mounts {mount['name']}, which is no volume")
        if not mount.get("readOnly"):
            found.append(f"mounts {mount['name']} to write")
    return found


def _selected(one, meta, everything):
    """Every pod is under the policies of the network, if there are any."""
    policies = [each for each in everything if each["kind"] == "NetworkPolicy"]
    if not policies:
        return []
    labels = meta.get("labels", {})
    over = [each for each in policies if (each["spec"]["podSelector"].get("matchLabels") or {}).items() <= labels.items()]
    found = [] if len(over) >= 2 else ["no network policy of its own beside the one that denies all"]
    if not any(not each["spec"].get("ingress") and not each["spec"].get("egress") for each in over):
        found.append("no network policy denies what nobody allows")
    # Where clients come in is the only door that is open to everybody.
    for each in over:
        for rule in each["spec"].get("ingress", []):
            if "from" not in rule and [port["port"] for port in rule.get("ports", [])] != [7440, 7440]:
                found.append(f"{each['metadata']['name']}: anybody may connect to {rule.get('ports')}")
    return found


def _deployment(one, pod, everything):
    name, found, box = one["metadata"]["name"], [], pod["containers"][0]
    role = box["name"]
    if role not in ROLES:
        return [f"{role} is no role"]
    for probe, path in (("readinessProbe", "/readyz"), ("livenessProbe", "/healthz"), ("startupProbe", "/healthz")):
        if box.get(probe, {}).get("httpGet", {}).get("path") != path:
            found.append(f"{probe} does not ask {path}")
    rolling = one["spec"].get("strategy", {}).get("rollingUpdate", {})
    if rolling.get("maxUnavailable") != 0 or not rolling.get("maxSurge"):
        found.append("a rollout takes a pod away before there is another")
    settings = settings_of(one, everything)
    budget = settings.get("drain", {}).get("budget_ms", 0) / 1000
    before = box.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    grace = pod.get("terminationGracePeriodSeconds", 30)
    if grace < before + budget + SECONDS_BEYOND:
        found.append(f"a grace of {grace} s is too short for {before} s of preStop, {budget:g} s of drain and {SECONDS_BEYOND} s")
    if role == "gateway" and not before:
        found.append("no preStop: newcomers come while it drains")
    selector = one["spec"]["selector"]["matchLabels"]
    if len([each for each in everything if each["kind"] == "PodDisruptionBudget"]) and not any(
            each["kind"] == "PodDisruptionBudget" and each["spec"]["selector"]["matchLabels"] == selector for each in everything):
        found.append("no PodDisruptionBudget")
    if not pod.get("topologySpreadConstraints"):
        found.append("nothing spreads its pods")
    scaled = [each for each in everything if each["kind"] in ("HorizontalPodAutoscaler", "ScaledObject") and each["spec"]["scaleTargetRef"]["name"] == name]
    if bool(scaled) == ("replicas" in one["spec"]):
        found.append("replicas and an autoscaler, or neither")
    ports = {(port["containerPort"], port["protocol"]) for port in box["ports"]}
    for key in ("listen", "admin"):
        if key in settings and (int(settings[key].rsplit(":", 1)[1]), "TCP") not in ports:
            found.append(f"it listens at {settings[key]}, which is no port of the container")
    if role == "gateway" and (not settings["quic"]["off"]) != any(protocol == "UDP" for _, protocol in ports):
        found.append("QUIC is on without a UDP port, or the other way round")
    # Every file that the settings name is mounted, with that key.
    mounted = {}
    for volume in pod["volumes"]:
        (at,) = [mount["mountPath"] for mount in box["volumeMounts"] if mount["name"] == volume["name"]] or [""]
        keys = [item["path"] for item in volume.get("secret", {}).get("items", [])]
        mounted[at] = keys
    for path in re.findall(r'"(/etc/chappe/[^"]+)"', repr_toml(settings)):
        folder, file = path.rsplit("/", 1)
        if folder not in mounted or mounted[folder] and file not in mounted[folder]:
            found.append(f"{path} is not mounted")
    return found


def settings_of(deployment, everything):
    """The settings file of a Deployment, parsed."""
    pod, _ = pod_of(deployment)
    (volume,) = [one for one in pod["volumes"] if one["name"] == "settings"]
    maps = [one for one in everything if one["kind"] == "ConfigMap" and one["metadata"]["name"] == volume["configMap"]["name"]]
    return tomllib.loads(next(iter(maps[0]["data"].values()))) if maps else {}


def repr_toml(value):
    """All texts in it, in double quotes."""
    if isinstance(value, dict):
        return " ".join(repr_toml(each) for each in value.values())
    if isinstance(value, list):
        return " ".join(repr_toml(each) for each in value)
    return f'"{value}"'


def _of(everything, kind, part=""):
    return next(one for one in everything if one["kind"] == kind and part in one["metadata"]["name"])


def _gateway(everything):
    return _of(everything, "Deployment", "gateway")


def _box(everything):
    return pod_of(_gateway(everything))[0]["containers"][0]


def _toml(everything, old, new):
    one = _of(everything, "ConfigMap", "gateway")
    before = one["data"]["gateway.toml"]
    one["data"]["gateway.toml"] = before.replace(old, new)
    if before == one["data"]["gateway.toml"]:
        raise ValueError(f"there is no {old} to break")


# How to break the objects, and a word of what has to be said about it.
BROKEN = [
    ("runs as root", lambda e: pod_of(_gateway(e))[0]["securityContext"].update(runAsNonRoot=False), "root"),
    ("no seccomp", lambda e: pod_of(_gateway(e))[0]["securityContext"].pop("seccompProfile"), "seccomp"),
    ("token mounted", lambda e: pod_of(_gateway(e))[0].pop("automountServiceAccountToken"), "token of the API"),
    ("default account", lambda e: pod_of(_of(e, "Job"))[0].update(serviceAccountName="default"), "service account"),
    ("account's token", lambda e: _of(e, "ServiceAccount").update(automountServiceAccountToken=True), "token is mounted"),
    ("host network", lambda e: pod_of(_gateway(e))[0].update(hostNetwork=True), "hostNetwork"),
    ("host path", lambda e: pod_of(_gateway(e))[0]["volumes"].append({"name": "x", "hostPath": {"path": "/"}}), "restricted"),
    ("open secret", lambda e: next(v for v in pod_of(_gateway(e))[0]["volumes"] if "secret" in v)["secret"].pop("defaultMode"), "everybody may read"),
    ("privileges", lambda e: _box(e)["securityContext"].update(allowPrivilegeEscalation=True), "privileges"),
    ("writable", lambda e: _box(e)["securityContext"].pop("readOnlyRootFilesystem"), "written"),
    ("capabilities", lambda e: _box(e)["securityContext"].update(capabilities={"drop": ["ALL"], "add": ["NET_RAW"]}), "capabilities"),
    ("latest", lambda e: _box(e).update(image="ghcr.io/chappe/chappe:latest"), "change under it"),
    ("no tag", lambda e: _box(e).update(image="ghcr.io/chappe/chappe"), "change under it"),
    ("no limit", lambda e: _box(e)["resources"].pop("limits"), "no limits of memory"),
    ("no request", lambda e: _box(e)["resources"]["requests"].pop("cpu"), "no requests of cpu"),
    ("limit of CPU", lambda e: _box(e)["resources"]["limits"].update(cpu="1"), "stand still"),
    ("secret in environment", lambda e: _box(e).update(env=[{"name": "X", "valueFrom": {"secretKeyRef": {"name": "a", "key": "b"}}}]), "from a Secret"),
    ("secret argument", lambda e: _box(e)["args"].append("--set=redis.password=hunter2"), "looks like a secret"),
    ("mount without volume", lambda e: pod_of(_gateway(e))[0].update(volumes=pod_of(_gateway(e))[0]["volumes"][:-1]), "no volume"),
    ("mount to write", lambda e: _box(e)["volumeMounts"][0].pop("readOnly"), "to write"),
    ("no readiness", lambda e: _box(e).pop("readinessProbe"), "readinessProbe"),
    ("liveness by readiness", lambda e: _box(e)["livenessProbe"]["httpGet"].update(path="/readyz"), "livenessProbe"),
    ("pod away first", lambda e: _gateway(e)["spec"]["strategy"]["rollingUpdate"].update(maxUnavailable=1), "before there is another"),
    ("short grace", lambda e: pod_of(_gateway(e))[0].update(terminationGracePeriodSeconds=60), "too short"),
    ("longer drain", lambda e: _toml(e, "budget_ms = 60000", "budget_ms = 90000"), "too short"),
    ("no preStop", lambda e: _box(e).pop("lifecycle"), "no preStop"),
    ("no budget", lambda e: e.remove(_of(e, "PodDisruptionBudget", "router")), "PodDisruptionBudget"),
    ("no spread", lambda e: pod_of(_gateway(e))[0].pop("topologySpreadConstraints"), "spreads"),
    ("replicas beside HPA", lambda e: _gateway(e)["spec"].update(replicas=3), "autoscaler"),
    ("quick scale-in", lambda e: _of(e, "HorizontalPodAutoscaler")["spec"]["behavior"]["scaleDown"].update(stabilizationWindowSeconds=60), "ten minutes"),
    ("another port", lambda e: _toml(e, 'admin = "0.0.0.0:7441"', 'admin = "0.0.0.0:7449"'), "no port of the container"),
    ("QUIC without port", lambda e: _box(e)["ports"].pop(), "UDP"),
    ("file not mounted", lambda e: _toml(e, "/etc/chappe/keys/push.key", "/etc/chappe/keys/other.key"), "not mounted"),
    ("no default deny", lambda e: e.remove(_of(e, "NetworkPolicy", "default-deny")), "denies"),
    ("no policy", lambda e: e.remove(_of(e, "NetworkPolicy", "router")), "no network policy"),
    ("open admin port", lambda e: _of(e, "NetworkPolicy", "gateway")["spec"]["ingress"][1].pop("from"), "anybody may connect"),
    ("a Secret", lambda e: e.append({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x"}}), "they are brought"),
    ("a field that does not exist", lambda e: _gateway(e)["spec"].update(replicaz=3), "replicaz"),
    ("a wrong type", lambda e: _gateway(e)["spec"].update(minReadySeconds="soon"), "minReadySeconds"),
]


def self_test(rendered, check):
    """Each way of breaking it must be seen, and nothing else be said."""
    failed = 0
    if check(copy.deepcopy(rendered)):
        print("FAILED whole objects are complained about")
        return 1
    for title, harm, word in BROKEN:
        broken = copy.deepcopy(rendered)
        harm(broken)
        found = check(broken)
        if not any(word in line for line in found):
            print(f"FAILED {title}: not seen ({'; '.join(found) or 'nothing is said'})")
            failed += 1
    print(f"{len(BROKEN) - failed} of {len(BROKEN)} ways of breaking it are seen")
    return 1 if failed else 0
