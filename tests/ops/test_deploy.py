"""`python -m ops.deploy`, as a person uses it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from local.runpod_faults import Fault
from local.runpod_rest import KEY, LocalRest, problems
from local.worker import ROOT
from tests.ops.conftest import HERE, Done, as_a_process, deployed

ENGINE = """#!/bin/sh
echo "$0 $* token=$HF_TOKEN" >> "$ENGINE_LOG"
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
        (["update", "--endpoint-id", "ep1", "--tag", "2"], "PATCH", "/v2/serverless/ep1"),
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
    assert env is None or env["EXECUTION_TIMEOUT_SECONDS"] == "900"


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


def test_a_secret_that_stood_there_is_not_shown(rest: LocalRest, made: Callable[..., str]) -> None:
    """An endpoint that was made by hand may have one; with a reference in its place it is gone."""
    endpoint_id = made()
    rest.endpoints[endpoint_id]["env"]["S3_SECRET_KEY"] = "plain-value"  # noqa: S105

    done = deployed("update", "--secret", "S3_SECRET_KEY=b2")

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
            f"{ROOT} token=a-token"
        ),
        "buildah push docker.io/you/qwen-worker:1 token=a-token",
    ]


def test_a_build_that_fails_is_the_end(
    rest: LocalRest, engine: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is pushed or made; an engine that is not there is told."""
    monkeypatch.setenv("ENGINE_CODE", "3")
    assert "`docker build` failed with exit code 3" in deployed("up", *HERE).err
    assert "there is no podman here" in deployed("build", "--engine", "podman").err
    assert "Say --registry" in deployed("push").err
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


def test_up_does_a_part(rest: LocalRest, engine: Callable[[], list[str]]) -> None:
    """--build-only asks nobody, --skip-build builds nothing, and a baked model is the one that is loaded."""
    assert deployed("up", "--build-only").code == 0
    assert deployed("up", "--skip-build", *HERE).code == 0
    assert [line.split()[1] for line in engine()] == ["build"]
    assert len(rest.endpoints) == 1
    assert "choose one" in deployed("up", "--build-only", "--skip-build").err
    other = deployed("up", *HERE, "--bake-model", "--model-id", "Qwen/Qwen-Image-Edit-2509")
    assert "say --env MODEL_ID=Qwen/Qwen-Image-Edit-2509" in other.err


@pytest.mark.parametrize(("known", "method"), [([], "POST"), (["--endpoint-id", "ep1"], "PATCH")])
def test_a_dry_run_of_up_lists_its_steps(engine: Callable[[], list[str]], known: list[str], method: str) -> None:
    """As one JSON list."""
    done = deployed("up", *HERE, *known, "--dry-run")

    assert [one.get("method") or one["command"][1] for one in done.json] == ["build", "push", method]
    assert engine() == []


def test_the_engine_is_told_of_nothing_else(engine: Callable[[], list[str]]) -> None:
    """Without a token no secret is asked for; stdout stays empty."""
    done: Done = deployed("build")

    assert "--secret" not in engine()[0]
    assert done.out == ""
    assert KEY not in engine()[0]
    assert "RUNPOD_API_KEY" not in os.environ
