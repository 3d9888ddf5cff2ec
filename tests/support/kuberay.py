"""The part of KubeRay's schema of a RayJob that `jobs/rayjob.yaml` uses, and how the operator's own is read.

The operator's definition (`ray.io_rayjobs.yaml`) has 25,000 lines, of which these are the types of what we use. A test
compares them with the definition itself where there is one (`TOKLOSS_KUBERAY_CRD` names the file).
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer"}
BOOLEAN: Schema = {"type": "boolean"}
QUANTITY: Schema = {"anyOf": [INTEGER, TEXT]}
QUANTITIES: Schema = {"type": "object", "additionalProperties": QUANTITY}
TEXTS: Schema = {"type": "object", "additionalProperties": TEXT}


def some(*needed: str, **fields: Schema) -> Schema:
    """An object with these fields and no others, of which some are needed."""
    return {"type": "object", "properties": fields, "required": list(needed), "additionalProperties": False}


def each(items: Schema) -> Schema:
    """A list."""
    return {"type": "array", "items": items}


_EXPRESSION = some("key", "operator", key=TEXT, operator=TEXT, values=each(TEXT))
_AFFINITY = some(
    nodeAffinity=some(
        requiredDuringSchedulingIgnoredDuringExecution=some(
            "nodeSelectorTerms", nodeSelectorTerms=each(some(matchExpressions=each(_EXPRESSION)))
        )
    )
)
_CONTAINER = some(
    "name",
    name=TEXT,
    image=TEXT,
    env=each(some("name", name=TEXT, value=TEXT)),
    resources=some(requests=QUANTITIES, limits=QUANTITIES),
    volumeMounts=each(some("mountPath", "name", name=TEXT, mountPath=TEXT, readOnly=BOOLEAN)),
)
_VOLUME = some(
    "name",
    name=TEXT,
    secret=some(secretName=TEXT),
    configMap=some(name=TEXT),
    emptyDir=some(sizeLimit=QUANTITY),
)
_TEMPLATE = some(
    spec=some(
        "containers",
        affinity=_AFFINITY,
        containers=each(_CONTAINER),
        securityContext=some(runAsNonRoot=BOOLEAN, runAsUser=INTEGER, fsGroup=INTEGER),
        tolerations=each(some(key=TEXT, operator=TEXT, value=TEXT, effect=TEXT)),
        volumes=each(_VOLUME),
    )
)
_WORKERS = some(
    "groupName", "maxReplicas", "minReplicas", "template",
    groupName=TEXT, replicas=INTEGER, minReplicas=INTEGER, maxReplicas=INTEGER, rayStartParams=TEXTS,
    template=_TEMPLATE,
)  # fmt: skip
RAY_JOB = some(
    apiVersion=TEXT,
    kind=TEXT,
    metadata={"type": "object"},
    spec=some(
        entrypoint=TEXT,
        shutdownAfterJobFinishes=BOOLEAN,
        ttlSecondsAfterFinished=INTEGER,
        backoffLimit=INTEGER,
        activeDeadlineSeconds=INTEGER,
        rayClusterSpec=some(
            "headGroupSpec",
            rayVersion=TEXT,
            authOptions=some(mode={**TEXT, "enum": ["disabled", "token"]}),
            enableInTreeAutoscaling=BOOLEAN,
            autoscalerOptions=some(version={**TEXT, "enum": ["v1", "v2"]}, idleTimeoutSeconds=INTEGER),
            headGroupSpec=some("template", rayStartParams=TEXTS, template=_TEMPLATE),
            workerGroupSpecs=each(_WORKERS),
        ),
    ),
)


def published(definition: Schema) -> Schema:
    """The schema in a CustomResourceDefinition, as `kubectl apply` holds to it: no fields that it does not name."""
    (version,) = (v for v in definition["spec"]["versions"] if v["name"] == "v1")
    return _closed(version["schema"]["openAPIV3Schema"])


def _closed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        made["additionalProperties"] = False
    return made


def differences(ours: Schema, theirs: Schema, place: str = "") -> list[str]:
    """Where a field of ours is not in theirs, is of another type, or is needed there and not here."""
    if "anyOf" in ours:
        return [] if theirs.get("x-kubernetes-int-or-string") else [f"{place}: not a quantity"]
    if ours.get("type") != theirs.get("type"):
        return [f"{place}: {theirs.get('type')}, not {ours.get('type')}"]
    found = []
    if "enum" in ours and ours["enum"] != theirs.get("enum"):
        found.append(f"{place}: {theirs.get('enum')}, not {ours['enum']}")
    fields = theirs.get("properties", {})
    for name, schema in ours.get("properties", {}).items():
        here = f"{place}.{name}"
        found += differences(schema, fields[name], here) if name in fields else [f"{here}: unknown"]
    needed = set(theirs.get("required", [])) & set(ours.get("properties", {}))
    found += [f"{place}.{name}: needed" for name in sorted(needed - set(ours.get("required", [])))]
    for part in ("items", "additionalProperties"):
        if isinstance(ours.get(part), dict):
            found += differences(ours[part], theirs[part], f"{place}[]")
    return found
