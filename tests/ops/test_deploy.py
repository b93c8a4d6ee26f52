"""`python -m ops.deploy`, as a person uses it."""

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from local.runpod_api import LocalRunPod
from local.runpod_faults import Fault
from local.runpod_rest import KEY, LocalRest, problems
from local.worker import ROOT
from qwen_worker.family import TEXT
from tests.ops.conftest import HERE, Done, as_a_process, deployed

ENGINE = """#!/bin/sh
echo "$0 $* token=$HF_TOKEN key=$RUNPOD_API_KEY" >> "$ENGINE_LOG"
eval "$ENGINE_DOES"
exit "${ENGINE_CODE:-0}"
"""


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """A stand-in of docker, podman and buildah, and what it was asked."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("docker", "buildah"):
        (folder / name).write_text(ENGINE)
        (folder / name).chmod(0o755)
    log = tmp_path / "engine.log"
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("ENGINE_LOG", str(log))
    return lambda: [line.removeprefix(f"{folder}/") for line in log.read_text().splitlines()] if log.exists() else []


def the_patch(rest: LocalRest) -> Any:
    (body,) = [one.body for one in rest.requests if one.method == "PATCH"]
    assert problems("UpdateEndpointRequest", body) == []
    return body


def test_help_names_the_commands() -> None:
    """Its help names every command, and needs neither key nor network."""
    done = deployed("--help")

    assert done.code == 0
    for name in ("pools", "build", "push", "create", "update", "up", "status", "smoke", "logs", "destroy"):
        assert f" {name} " in done.out


def test_an_error_is_a_sentence() -> None:
    """On stderr, with exit code 1, and no traceback."""
    done = as_a_process("status")

    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("there is no API key: make one in RunPod's console")
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "method", "path"),
    [
        (["create", *HERE], "POST", "/v2/serverless"),
        (["destroy", "--endpoint-id", "ep1"], "DELETE", "/v2/serverless/ep1"),
    ],
)
def test_a_dry_run_sends_nothing(
    rest: LocalRest, monkeypatch: pytest.MonkeyPatch, arguments: list[str], method: str, path: str
) -> None:
    """It prints what it would send, and needs no key."""
    monkeypatch.delenv("RUNPOD_API_KEY")

    done = deployed(*arguments, "--dry-run")

    assert done.code == 0
    assert (done.json["method"], done.json["url"]) == (method, f"http://127.0.0.1:{rest.port}{path}")
    assert rest.requests == []


def test_a_dry_run_of_a_change_asks_how_the_endpoint_is(rest: LocalRest, made: Callable[..., str]) -> None:
    """And prints what would be sent, and no more."""
    endpoint_id = made()

    done = deployed("update", "--tag", "2", "--workers-max", "3", "--dry-run")

    assert done.json == {
        "method": "PATCH",
        "url": f"http://127.0.0.1:{rest.port}/v2/serverless/{endpoint_id}",
        "body": {"image": "docker.io/you/qwen-worker:2"},
    }
    assert done.err == "image: docker.io/you/qwen-worker:latest -> docker.io/you/qwen-worker:2\n"
    assert {one.method for one in rest.requests} == {"GET"}


def test_an_endpoint_is_made_once(rest: LocalRest) -> None:
    """What is printed is the endpoint; a second one of its name is refused."""
    first, second = deployed("create", *HERE), deployed("create", *HERE)

    assert first.json == rest.endpoints[first.json["id"]]
    assert second.code == 1
    assert "there is an endpoint named qwen-image-edit already" in second.err
    assert len(rest.endpoints) == 1


def test_only_what_is_said_changes(rest: LocalRest, made: Callable[..., str]) -> None:
    """The difference is shown; a variable more keeps the others."""
    endpoint_id = made("--env", "PROFILE=bf16", "--env", "WARMUP=0")
    before = dict(rest.endpoints[endpoint_id]["env"])

    done = deployed("update", "--tag", "2", "--env", "LOG_LEVEL=DEBUG", "--unset", "WARMUP", "--workers-max", "1")

    after = {name: value for name, value in before.items() if name != "WARMUP"} | {"LOG_LEVEL": "DEBUG"}
    workers = {"min": 0, "max": 1, "idleTimeout": 5}
    assert the_patch(rest) == {"image": "docker.io/you/qwen-worker:2", "env": after, "workers": workers}
    assert done.err.splitlines() == [
        "image: docker.io/you/qwen-worker:latest -> docker.io/you/qwen-worker:2",
        "env.WARMUP: 0 -> none",
        "env.LOG_LEVEL: none -> DEBUG",
        "workers.max: 3 -> 1",
    ]


@pytest.mark.parametrize(
    ("options", "body"),
    [
        (["--env", "EXECUTION_TIMEOUT_SECONDS=900"], {"timeout": 900000}),
        (["--request-count", "2"],
         {"scaling": {"type": "REQUEST_COUNT", "requestCount": 2}, "workers": {"min": 0, "max": 3}}),
        (["--gpu-pool", "HOPPER_141"], {"gpu": {"pools": ["HOPPER_141"]}}),
        (["--min-cuda-version", "13.1"], {"gpu": {"minCudaVersion": "13.1"}}),
        (["--network-volume", "v1", "--model-from", "volume"], {"networkVolumes": ["v1"], "disk": 20}),
        (["--registry", "ghcr.io/me"], {"image": "ghcr.io/me/qwen-worker:latest"}),
        (["--network-volume", "v1"], {"networkVolumes": ["v1"], "disk": 20}),
        (["--env", f"T2I_MODEL_ID={TEXT.id}", "--gpu-pool", "HOPPER_141"],
         {"gpu": {"pools": ["HOPPER_141"]}, "disk": 120}),
        (["--no-flashboot"], {"flashboot": "OFF"}),
        (["--data-center", "EU-RO-1", "--data-center", ""], {"dataCenterIds": ["EU-RO-1"]}),
    ],
)  # fmt: skip
def test_each_change_is_sent_alone(
    rest: LocalRest, made: Callable[..., str], options: list[str], body: dict[str, Any]
) -> None:
    """With what must agree with it."""
    made()

    assert deployed("update", *options).code == 0

    sent = the_patch(rest)
    env = sent.pop("env", None)
    assert sent == body
    assert env is None or env["EXECUTION_TIMEOUT_SECONDS"] == str(body.get("timeout", 600000) // 1000)


def test_what_is_not_said_stays(rest: LocalRest, made: Callable[..., str]) -> None:
    """A timeout that was set by hand, a disk, GPUs that are not told; it is looked at all the same."""
    endpoint = rest.endpoints[made("--disk", "200")]
    endpoint |= {"timeout": 1800000, "gpu": None, "workers": {"min": 0, "max": 3}}
    del endpoint["env"]["EXECUTION_TIMEOUT_SECONDS"]

    assert deployed("update", "--tag", "2", "--env", "LOG_LEVEL=DEBUG").code == 0
    assert the_patch(rest).keys() == {"image", "env"}
    assert "EXECUTION_TIMEOUT_SECONDS" not in endpoint["env"]
    assert deployed("update", "--gpu-pool", "AMPERE_80").json["gpu"] == {"pools": ["AMPERE_80"]}
    endpoint["timeout"] = 300000
    assert "EXECUTION_TIMEOUT_SECONDS: is 300" in deployed("update", "--tag", "3").err


def test_a_volume_that_goes_leaves_room_for_the_model(rest: LocalRest, made: Callable[..., str]) -> None:
    """A second one changes nothing of that."""
    made("--network-volume", "v1", "--disk", "30")

    assert deployed("update", "--network-volume", "v1", "--network-volume", "v2").json["disk"] == 30
    assert "say --network-volume" in deployed("update", "--network-volume", "", "--model-from", "volume").err
    assert deployed("update", "--network-volume", "").json["disk"] == 80
    assert rest.requests[-1].body == {"networkVolumes": [], "disk": 80}


def test_a_tag_replaces_tag_and_digest(rest: LocalRest, made: Callable[..., str]) -> None:
    """And without a registry there is nothing to pull."""
    endpoint = rest.endpoints[made()]
    endpoint["image"] = "docker.io/you/qwen-worker:1@sha256:" + "0" * 64

    moved = deployed("update", "--registry", "ghcr.io/me")

    assert moved.json["image"] == "ghcr.io/me/qwen-worker:1@sha256:" + "0" * 64
    assert deployed("update", "--tag", "2").json["image"] == "ghcr.io/me/qwen-worker:2"
    assert "Say --registry" in deployed("update", "--registry", "").err


@pytest.mark.parametrize("unset", [["--unset", "S3_SECRET_KEY"], ["--env", "S3_SECRET_KEY="]])
def test_a_secret_that_is_needed_stays(rest: LocalRest, made: Callable[..., str], unset: list[str]) -> None:
    """Without it no worker would start, nor does one where it is not there to begin with."""
    endpoint = rest.endpoints[made()]

    assert "S3_SECRET_KEY: Field required" in deployed("update", *unset).err
    del endpoint["env"]["S3_SECRET_KEY"]
    assert "S3_SECRET_KEY: Field required" in deployed("update", "--tag", "2").err
    assert {one.method for one in rest.requests} == {"GET"}
    # Such an endpoint can be stopped all the same.
    assert deployed("update", "--workers-max", "0").json["workers"]["max"] == 0


def test_nothing_to_change_sends_nothing(rest: LocalRest, made: Callable[..., str]) -> None:
    """And says why an image of the same name does not arrive."""
    made()

    done = deployed("update", "--workers-max", "3", "--tag", "latest")

    assert "nothing changes" in done.err
    assert [one.method for one in rest.requests] == ["GET", "GET"]


def test_a_change_that_would_end_workers_is_refused(rest: LocalRest, made: Callable[..., str]) -> None:
    """Variables are looked at together with those that there are, and with the GPUs that there are."""
    made("--gpu-pool", "AMPERE_80")

    assert "PROFILE=fp8 needs a GPU that multiplies 8-bit floats" in deployed("update", "--env", "PROFILE=fp8").err
    assert "S3_REGION: is x" in deployed("update", "--env", "S3_REGION=x").err
    assert {one.method for one in rest.requests} == {"GET"}


def test_a_secret_that_stood_there_is_not_shown(
    rest: LocalRest, made: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An endpoint that was made by hand may have one; with a reference in its place it is gone."""
    endpoint_id = made()
    rest.endpoints[endpoint_id]["env"]["S3_SECRET_KEY"] = "plain-value"  # noqa: S105

    shown = [deployed("update", "--tag", "2"), deployed("update", "--tag", "2"),
             deployed("update", "--env", "WARMUP=0", "--dry-run"), deployed("update", "--env", "WARMUP=0")]  # fmt: skip
    with LocalRunPod() as jobs:
        monkeypatch.setenv("RUNPOD_ENDPOINT_BASE_URL", jobs.base_url)
        shown.append(deployed("status", "--json"))
    done = deployed("update", "--secret", "S3_SECRET_KEY=b2")

    assert all('"S3_SECRET_KEY": "(a secret)"' in one.out for one in shown)
    assert "plain-value" not in str(shown)
    assert "env.S3_SECRET_KEY: (a secret) -> {{ RUNPOD_SECRET_b2 }}" in done.err
    assert "plain-value" not in done.out + done.err


def test_cuda_is_a_floor_or_a_set(rest: LocalRest, made: Callable[..., str]) -> None:
    """RunPod takes one of them: the floor replaces a set."""
    endpoint_id = made()
    rest.endpoints[endpoint_id]["gpu"] |= {"allowedCudaVersions": ["12.8"], "minCudaVersion": None}

    assert deployed("update", "--min-cuda-version", "13.0").code == 0

    assert the_patch(rest)["gpu"] == {"minCudaVersion": "13.0", "allowedCudaVersions": []}


def test_an_endpoint_is_found(rest: LocalRest, made: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """By its id, the environment, or its name if that is enough."""
    endpoint_id = made("--name", "one")
    assert "there is no endpoint named qwen-image-edit" in deployed("update", "--tag", "2").err
    assert deployed("update", "--tag", "2", "--name", "one").json["id"] == endpoint_id
    monkeypatch.setenv("RUNPOD_ENDPOINT_ID", endpoint_id)
    assert deployed("update", "--tag", "3").json["image"].endswith(":3")
    monkeypatch.delenv("RUNPOD_ENDPOINT_ID")
    rest.endpoints["twin"] = {**rest.endpoints[endpoint_id], "id": "twin"}

    assert f"one is the name of {endpoint_id}, twin: say --endpoint-id" in deployed("update", "--name", "one").err


def test_the_environment_names_it_where_nobody_does(
    rest: LocalRest, made: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is said on the command line wins, and a variable that is not set is no name."""
    mine, staging = made(), made("--name", "staging")
    monkeypatch.setenv("RUNPOD_ENDPOINT_ID", mine)

    assert deployed("update", "--name", "staging", "--workers-max", "1").json["id"] == staging
    assert deployed("up", *HERE, "--skip-build", "--name", "third").json["name"] == "third"
    assert deployed("destroy", "--name", "staging", "--yes").code == 0
    for empty in ("--endpoint-id", "--name"):
        for command in (["destroy", "--yes"], ["destroy", "--dry-run"], ["update"], ["up"], ["status"], ["logs"],
                        ["smoke"]):  # fmt: skip
            assert "is empty: is a variable of your shell not set?" in deployed(*command, empty, "").err
    assert [one["name"] for one in rest.endpoints.values()] == ["qwen-image-edit", "third"]


def test_deletion_asks(rest: LocalRest, made: Callable[..., str]) -> None:
    """Whoever does not say yes keeps the endpoint."""
    endpoint_id = made("--network-volume", "v1")

    no = as_a_process("destroy", more=rest.environment, said="n\n")

    assert no.code == 1
    assert f"Delete qwen-image-edit ({endpoint_id})" in no.err
    assert list(rest.endpoints) == [endpoint_id]
    assert "its network volume stays and is paid for: v1" in deployed("destroy", "--yes").err
    assert rest.endpoints == {}


def test_an_answer_that_is_not_as_published_is_told(rest: LocalRest) -> None:
    """Without a traceback."""
    rest.fault = Fault(body="{}")

    assert deployed("status").err == "RunPod's answer lacks 'endpoints': it is not as published\n"


def test_an_image_is_built_and_pushed(engine: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """With the Dockerfile's arguments; the token goes in as a secret, of which the command has the name alone."""
    monkeypatch.setenv("HF_TOKEN", "a-token")
    named = ("--registry", "docker.io/you", "--tag", "1")

    built = deployed("build", *named, "--bake-model", "--model-id", "Qwen/Qwen-Image-Edit", "--model-revision", "c0",
                     "--compiler", "--run-as", "root", "--base-image", "python:3.12-slim")  # fmt: skip
    pushed = deployed("push", *named, "--engine", "buildah")

    assert (built.code, built.out, pushed.code) == (0, "", 0)
    assert engine() == [
        (
            "docker build --platform linux/amd64 --tag docker.io/you/qwen-worker:1 "
            "--build-arg BASE_IMAGE=python:3.12-slim "
            "--build-arg BAKE_MODEL=1 --build-arg MODEL_ID=Qwen/Qwen-Image-Edit --build-arg MODEL_REVISION=c0 "
            "--build-arg COMPILER=1 --build-arg RUN_AS=root --secret id=HF_TOKEN,env=HF_TOKEN "
            f"{ROOT} token=a-token key="
        ),
        "buildah push docker.io/you/qwen-worker:1 token=a-token key=",
    ]


def test_a_build_that_fails_is_the_end(
    rest: LocalRest, engine: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is pushed or made; an engine that is not there is told."""
    monkeypatch.setenv("ENGINE_CODE", "3")
    assert "`docker build` failed with exit code 3" in deployed("up", *HERE).err
    assert "there is no podman here" in deployed("build", "--engine", "podman").err
    assert "Say --registry" in deployed("push").err
    digest = ("--registry", "docker.io/you", "--tag", "sha256:" + "0" * 64)
    assert "built already, by its digest" in deployed("build", *digest).err
    assert "built already, by its digest" in deployed("push", *digest).err
    assert len(engine()) == 1
    assert rest.endpoints == {}


def test_up_does_it_all(rest: LocalRest, engine: Callable[[], list[str]]) -> None:
    """The first time it makes the endpoint, the next time it changes the image."""
    first = deployed("up", *HERE, "--tag", "1", "--bake-model", "--env", "PRESET=fast-4")
    second = deployed("up", "--registry", "docker.io/you", "--tag", "2")

    assert [line.split()[:2] for line in engine()] == [["docker", "build"], ["docker", "push"]] * 2
    assert first.json["disk"] == 20
    assert engine()[0].partition("BAKE_MODEL=1 ")[2].startswith("--build-arg PRESET=fast-4 ")
    assert second.json["id"] == first.json["id"]
    assert the_patch(rest) == {"image": "docker.io/you/qwen-worker:2"}


def test_up_goes_by_what_the_endpoint_has(
    rest: LocalRest, engine: Callable[[], list[str]], made: Callable[..., str]
) -> None:
    """Its volume needs root, its COMPILE=1 a compiler, and its model is the one that is baked."""
    endpoint = rest.endpoints[made("--network-volume", "v1", "--env", "COMPILE=1")]
    assert deployed("up", "--registry", "docker.io/you", "--tag", "2").code == 0
    endpoint["env"]["MODEL_ID"] = "Qwen/Qwen-Image-Edit-2509"
    again = ("up", "--registry", "docker.io/you", "--tag", "3", "--bake-model")
    assert deployed(*again).code == 0
    assert "but workers load Qwen/Qwen-Image-Edit-2509" in deployed(*again, "--model-id", "Qwen/Qwen-Image-Edit").err

    plain, _, bakes, _ = engine()
    assert "--build-arg COMPILER=1 --build-arg RUN_AS=root" in plain
    assert "--build-arg MODEL_ID=Qwen/Qwen-Image-Edit-2509" in bakes
    assert "RUN_AS" not in bakes


def test_up_without_a_build_keeps_the_image(rest: LocalRest, made: Callable[..., str]) -> None:
    """As far as it is not said."""
    made("--tag", "1")

    assert deployed("up", "--skip-build", "--workers-max", "5").code == 0

    assert the_patch(rest).keys() == {"workers"}


def test_what_changed_during_the_build_stays(
    rest: LocalRest, engine: Callable[[], list[str]], made: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes an hour: the endpoint is looked at again, also whether there is one."""
    endpoint = rest.endpoints[made("--tag", "1")]
    call = (
        "import os, sys, urllib.request as http\n"
        "head = {'Authorization': 'Bearer %s', 'Content-Type': 'application/json'}\n"
        "http.urlopen(http.Request(sys.argv[1], sys.argv[3].encode(), head, method=sys.argv[2]))"
    )
    called = f"{sys.executable} -c {shlex.quote(call % KEY)} http://127.0.0.1:{rest.port}/v2/serverless"
    env = json.dumps({"env": {**endpoint["env"], "LOG_LEVEL": "DEBUG"}})
    monkeypatch.setenv("ENGINE_DOES", f"[ $1 = push ] || {called}/{endpoint['id']} PATCH {shlex.quote(env)}")

    assert deployed("up", "--registry", "docker.io/you", "--tag", "2", "--env", "WARMUP=0").code == 0

    assert (endpoint["env"]["LOG_LEVEL"], endpoint["env"]["WARMUP"]) == ("DEBUG", "0")
    twin = json.dumps(deployed("create", *HERE, "--name", "new", "--dry-run").json["body"])
    monkeypatch.setenv("ENGINE_DOES", f"[ $1 = push ] || {called} POST {shlex.quote(twin)}")
    assert deployed("up", *HERE, "--tag", "2", "--name", "new").json["image"].endswith(":2")
    assert [one["name"] for one in rest.endpoints.values()] == ["qwen-image-edit", "new"]
    assert len(engine()) == 4


def test_up_does_a_part(rest: LocalRest, engine: Callable[[], list[str]]) -> None:
    """--build-only asks nobody, --skip-build builds nothing, and a baked model is the one that is loaded."""
    assert deployed("up", "--build-only").code == 0
    assert deployed("up", "--skip-build", *HERE).code == 0
    assert [line.split()[1] for line in engine()] == ["build"]
    assert len(rest.endpoints) == 1
    assert "choose one" in deployed("up", "--build-only", "--skip-build").err
    other = deployed("up", *HERE, "--bake-model", "--model-id", "Qwen/Qwen-Image-Edit-2509")
    assert "say --env MODEL_ID=Qwen/Qwen-Image-Edit-2509" in other.err


def test_a_dry_run_of_up_lists_its_steps(
    rest: LocalRest, engine: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one JSON list; with a key it asks whether there is an endpoint, without one it takes it for new."""
    there, new = ["build", "push", "PATCH"], ["build", "push", "POST"]
    assert steps(deployed("up", *HERE, "--dry-run")) == new
    endpoint_id = deployed("create", *HERE).json["id"]
    rest.requests.clear()

    assert steps(deployed("up", *HERE, "--tag", "2", "--dry-run")) == there
    assert {one.method for one in rest.requests} == {"GET"}
    monkeypatch.delenv("RUNPOD_API_KEY")
    assert steps(deployed("up", *HERE, "--dry-run")) == new
    assert "there is no API key" in deployed("up", *HERE, "--endpoint-id", endpoint_id, "--dry-run").err
    assert engine() == []


def steps(done: Done) -> list[str]:
    return [one.get("method") or one["command"][1] for one in done.json]


def test_the_engine_is_told_of_nothing_else(
    engine: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """Without a token no secret is asked for; stdout stays empty."""
    monkeypatch.setenv("RUNPOD_API_KEY", KEY)

    done: Done = deployed("build")

    assert "--secret" not in engine()[0]
    assert done.out == ""
    assert engine()[0].endswith(" key=")
