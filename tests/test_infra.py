"""Every file of infra/, by the schema of the tool that reads it, and by what this project asks of it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import tokenshard
from infra_files import INFRA, ROOT, documents, load, values

CLUSTERS = ["rayjob.yaml", "raycluster.yaml"]
RAY = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
VERSION = tokenshard.__version__
TEXTS = [path for path in sorted(INFRA.rglob("*")) if path.is_file() and path.name != ".env"]


# -- all of them ------------------------------------------------------------------------------------------------------


def test_every_folder_says_how_to_use_it_in_three_commands() -> None:
    folders = [path for path in INFRA.iterdir() if path.is_dir()]
    assert {path.name for path in folders} == {"aws", "compose", "docker", "grafana", "kuberay"}
    for folder in folders:
        (block,) = re.findall(r"```console\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
        assert len(block.strip().splitlines()) == 3, folder
        for path in re.findall(r"infra/[\w./-]+", block):
            assert (ROOT / path).exists() or path.endswith(".env"), path


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(INFRA)))
def test_a_named_version_of_ray_is_that_of_the_constraints(path: Path) -> None:
    text = path.read_text()
    found = re.findall(
        r"(?:rayVersion: \"|[Rr]ay(?:\[default\])?==|Ray |RAY_VERSION=|__version__ == ')(\d+\.\d+\.\d+)", text
    )
    assert set(found) <= {RAY}
    assert set(re.findall(r"tokenshard:(\d+\.\d+\.\d+)", text)) <= {VERSION}
    if (
        path.suffix == ".yaml"
        and re.search(r"ray start|ray\.io/v1|\bimage: .*tokenshard", text)
        and path.name != "access.yaml"
    ):
        assert found, "names no version of Ray"


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(INFRA)))
def test_no_file_holds_a_secret(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"AKIA[0-9A-Z]{16}|ASIA[0-9A-Z]{16}|-----BEGIN|eyJ[\w-]{20,}|\b[0-9a-f]{40,}\b", text)
    for name, value in re.findall(r"(\w*(?:SECRET|TOKEN|PASSWORD|ACCESS_KEY)\w*)\s*[:=]\s*(\S+)", text):
        assert value.startswith(("${", '"${')) or name.endswith("_MODE") or path.name == "README.md", f"{name}: {value}"


def test_every_option_of_ray_start_exists() -> None:
    from ray.scripts.scripts import start

    known = {option for parameter in start.params for option in (*parameter.opts, *parameter.secondary_opts)}
    commands = [
        *(load("compose", "compose.yaml")["services"][name]["command"] for name in ("head", "worker")),
        *(line for kind in ("head", "worker") for line in load("aws", "cluster.yaml")[f"{kind}_start_ray_commands"]),
    ]
    used = {option for command in commands for option in re.findall(r"(--[\w-]+)", command)}
    params = [params for name in CLUSTERS for params in values(load("kuberay", name), "rayStartParams")]
    used |= {f"--{name}" for each in params for name in each}
    assert {"--head", "--num-cpus", "--dashboard-host", "--address"} <= used <= known


# -- docker -----------------------------------------------------------------------------------------------------------


def test_the_dockerfile_has_nothing_that_hadolint_complains_about() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, INFRA / "docker" / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_runs_as_nobody_special_and_holds_no_build_tools() -> None:
    text = (INFRA / "docker" / "Dockerfile").read_text()
    *build, final = re.split(r"^FROM ", text, flags=re.MULTILINE)
    assert len(build) == 2
    assert re.search(r"^USER 1000:1000$", final, re.MULTILINE)
    assert "pip install" not in final
    assert "ADD " not in text
    assert re.search(r"ARG TORCH_INDEX=https://download\.pytorch\.org/whl/cpu", text)
    assert f"ARG RAY_VERSION={RAY}" in text


def test_the_builder_gets_what_it_copies_and_nothing_else() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    text = (INFRA / "docker" / "Dockerfile").read_text()
    copied = {
        name.rstrip("/")
        for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE)
        for name in line.split()[:-1]
    }
    copied = {name for name in copied if not name.startswith("--")}
    assert copied == allowed
    assert all((ROOT / name).exists() for name in allowed)


# -- compose ----------------------------------------------------------------------------------------------------------


def test_the_compose_file_is_valid() -> None:
    from compose_spec import PyCompose

    text = (INFRA / "compose" / "compose.yaml").read_text()
    # the parser types what compose fills in from the environment, so a value stands in for each
    parsed = PyCompose.from_yaml(yaml.safe_dump(yaml.safe_load(re.sub(r"\$\{(\w+):\?[^}]*\}", r"\1", text))))
    assert set(parsed.service_names()) == {"s3", "head", "worker", "prometheus"}


def test_the_compose_file_opens_ports_on_loopback_alone_and_makes_a_cluster() -> None:
    services = load("compose", "compose.yaml")["services"]
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert services["worker"]["deploy"]["replicas"] == 2
    assert "--num-cpus=0" in services["head"]["command"]
    for name in ("head", "worker"):
        assert services[name]["environment"]["RAY_AUTH_MODE"] == "token"
        assert services[name]["cap_drop"] == ["ALL"]
    for image in (service["image"] for service in services.values()):
        assert re.search(r":v?\d+\.\d+", image), f"{image}: not pinned"


# -- Kubernetes -------------------------------------------------------------------------------------------------------

# Fields of the custom resources (KubeRay 1.6), by the Go type they belong to.
FIELDS = {
    "RayJobSpec": "activeDeadlineSeconds backoffLimit rayClusterSpec submitterPodTemplate metadata clusterSelector "
    "submitterConfig managedBy deletionStrategy entrypoint runtimeEnvYAML jobId submissionMode entrypointResources "
    "entrypointNumCpus entrypointNumGpus ttlSecondsAfterFinished shutdownAfterJobFinishes suspend",
    "RayClusterSpec": "suspend managedBy autoscalerOptions authOptions headServiceAnnotations enableInTreeAutoscaling "
    "gcsFaultToleranceOptions headGroupSpec rayVersion workerGroupSpecs",
    "AutoscalerOptions": "resources image imagePullPolicy securityContext idleTimeoutSeconds upscalingMode version env "
    "envFrom volumeMounts",
    "AuthOptions": "mode secretName enableK8sTokenAuth",
    "HeadGroupSpec": "template headService enableIngress rayStartParams serviceType",
    "WorkerGroupSpec": "groupName replicas minReplicas maxReplicas numOfHosts idleTimeoutSeconds rayStartParams "
    "template scaleStrategy suspend",
}


def check_fields(kind: str, document: dict[str, Any]) -> None:
    assert set(document) <= set(FIELDS[kind].split()), kind


@pytest.fixture(params=CLUSTERS)
def cluster(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The RayClusterSpec of a manifest."""
    document = load("kuberay", request.param)
    assert document["apiVersion"] == "ray.io/v1"
    return document["spec"] if document["kind"] == "RayCluster" else document["spec"]["rayClusterSpec"]


def groups(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def test_the_custom_resources_have_only_fields_that_exist(cluster: dict[str, Any]) -> None:
    check_fields("RayClusterSpec", cluster)
    check_fields("AutoscalerOptions", cluster["autoscalerOptions"])
    check_fields("AuthOptions", cluster["authOptions"])
    check_fields("HeadGroupSpec", cluster["headGroupSpec"])
    for group in cluster["workerGroupSpecs"]:
        check_fields("WorkerGroupSpec", group)
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in groups(cluster):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_the_core_resources_and_pods_fit_the_schemas_of_kubernetes(cluster: dict[str, Any]) -> None:
    import kubernetes_validate

    pods = [group["template"] for group in groups(cluster)]
    pods.append(load("kuberay", "rayjob.yaml")["spec"]["submitterPodTemplate"])
    for template in pods:
        named = {"name": "x", **template["metadata"]}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": named, "spec": template["spec"]}
        kubernetes_validate.validate(pod, "1.34", strict=True)
    for document in documents(INFRA / "kuberay" / "access.yaml"):
        kubernetes_validate.validate(document, "1.34", strict=True)


def test_the_cluster_scales_on_demand_and_keeps_units_off_its_head(cluster: dict[str, Any]) -> None:
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert cluster["authOptions"]["mode"] == "token"
    limits = [next(values(group, "limits")) for group in cluster["workerGroupSpecs"]]
    assert ["nvidia.com/gpu" in limit for limit in limits] == [False, True]


def test_pods_are_what_restricted_namespaces_allow(cluster: dict[str, Any]) -> None:
    submitter = load("kuberay", "rayjob.yaml")["spec"]["submitterPodTemplate"]
    for template in (*(group["template"] for group in groups(cluster)), submitter):
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert {"cpu", "memory"} <= set(container["resources"]["requests"])
    assert cluster["autoscalerOptions"]["securityContext"]["allowPrivilegeEscalation"] is False


def test_credentials_reach_pods_by_reference(cluster: dict[str, Any]) -> None:
    for group in groups(cluster):
        for entry in group["template"]["spec"]["containers"][0]["env"]:
            if re.search("KEY|SECRET|TOKEN", entry["name"]):
                assert set(entry) == {"name", "valueFrom"}
                assert set(entry["valueFrom"]) == {"secretKeyRef"}


def test_the_job_retries_by_resuming_and_ends_its_cluster() -> None:
    spec = load("kuberay", "rayjob.yaml")["spec"]
    check_fields("RayJobSpec", spec)
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["backoffLimit"] >= 1
    assert spec["submissionMode"] in {"K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"}
    program, command, job = spec["entrypoint"].split()
    head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    (mount,) = [m for m in head["containers"][0]["volumeMounts"] if job.startswith(f"{m['mountPath']}/")]
    assert mount["name"] in {volume["name"] for volume in head["volumes"]}
    from tokenshard.cli.main import COMMANDS

    assert program == "tokenshard"
    assert command in COMMANDS


def test_the_dashboard_is_reached_from_inside_and_by_the_operator_alone() -> None:
    (policy,) = [d for d in documents(INFRA / "kuberay" / "access.yaml") if d["kind"] == "NetworkPolicy"]
    assert (policy["spec"]["podSelector"], policy["spec"]["policyTypes"]) == ({}, ["Ingress"])
    inside, *outside = policy["spec"]["ingress"]
    assert inside == {"from": [{"podSelector": {}}]}
    ports = {
        rule["from"][0]["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]: rule["ports"]
        for rule in outside
    }
    assert {name: [port["port"] for port in opened] for name, opened in ports.items()} == {
        "kuberay-operator": [8265],
        "monitoring": [8080],
    }


# -- AWS --------------------------------------------------------------------------------------------------------------


def test_the_cluster_launcher_takes_the_aws_file() -> None:
    """By the schema of Ray's autoscaler and by the checks that `ray up` makes before it calls AWS."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(load("aws", "cluster.yaml"))
    validate_config(prepared)
    assert prepared["available_node_types"].keys() == {"head", "cpu-spot", "gpu-spot"}


def test_workers_are_spot_and_the_head_is_not_and_credentials_come_from_profiles() -> None:
    config = load("aws", "cluster.yaml")
    for name, kind in config["available_node_types"].items():
        node = kind["node_config"]
        assert (node.get("InstanceMarketOptions", {}).get("MarketType") == "spot") == (name != "head")
        assert node["IamInstanceProfile"]["Arn"].startswith("arn:aws:iam::")
        assert node["MetadataOptions"]["HttpTokens"] == "required"
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][1]


def test_the_launcher_opens_no_port_to_the_world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What `ray up` does before the head starts, on AWS as moto plays it, with a group made as the README says."""
    import boto3
    from moto import mock_aws
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.util import prepare_config

    for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", str(tmp_path))  # the launcher writes its SSH key there
    (tmp_path / ".ssh").mkdir()
    aws = mock_aws()
    aws.start(reset=False)  # an S3 server of this process keeps what it has
    try:
        ec2 = boto3.client("ec2", region_name="us-east-1")
        group = ec2.create_security_group(GroupName="tokenshard-ray", Description="tokenshard on Ray")["GroupId"]
        config = prepare_config(load("aws", "cluster.yaml"))
        for kind in config["available_node_types"].values():
            kind["node_config"]["SecurityGroupIds"] = [group]
        ready = bootstrap_aws(config)
        for kind in ready["available_node_types"].values():
            assert kind["node_config"]["SecurityGroupIds"] == [group]
            assert kind["node_config"]["SubnetIds"]
        rules = [rule for one in ec2.describe_security_groups()["SecurityGroups"] for rule in one["IpPermissions"]]
        assert not [rule for rule in rules if "0.0.0.0/0" in {block["CidrIp"] for block in rule["IpRanges"]}]
    finally:
        aws.stop(remove_data=False)


def test_the_launcher_uses_no_field_of_ec2_that_is_unknown() -> None:
    import boto3
    from botocore.validate import ParamValidator

    client = boto3.client("ec2", region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x")
    shape = client.meta.service_model.operation_model("RunInstances").input_shape
    for kind in load("aws", "cluster.yaml")["available_node_types"].values():
        node = {"MinCount": 1, "MaxCount": 1, **kind["node_config"]}
        assert set(node) <= set(shape.members)
        assert not ParamValidator().validate(node, shape).has_errors()


def test_the_bucket_policy_allows_what_a_store_calls_and_nothing_more() -> None:
    policy = json.loads((INFRA / "aws" / "bucket-policy.json").read_text())
    allowed: dict[str, set[str]] = {}
    for statement in policy["Statement"]:
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        if statement["Effect"] == "Allow":
            assert "*" not in "".join(actions)
            allowed.setdefault(statement["Resource"].partition("/")[0].rpartition(":")[2], set()).update(actions)
    reading = {"s3:GetObject", "s3:ListBucket"}
    assert allowed["example-raw"] == reading
    assert allowed["example-tokens"] == {*reading, "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"}


def test_the_pod_monitor_finds_the_pods_and_their_port(cluster: dict[str, Any]) -> None:
    spec = load("grafana", "podmonitor.yaml")["spec"]
    for group in groups(cluster):
        template = group["template"]
        assert spec["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
        named = {port["name"] for port in template["spec"]["containers"][0]["ports"]}
        assert {endpoint["port"] for endpoint in spec["podMetricsEndpoints"]} <= named
