"""What would be sent to RunPod, against the schema that it publishes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from local.runpod_rest import problems
from local.worker import ROOT
from ops import bodies, gpu_pools
from qwen_worker.cards import CARDS
from qwen_worker.family import TEXT
from qwen_worker.settings import Settings
from tests.ops.conftest import BUCKET, HERE, Done, deployed

PLAIN = "S3_SECRET_KEY=K005plainvalue"  # pragma: allowlist secret


def dry(*arguments: str) -> Any:
    done = deployed("create", "--dry-run", *HERE, *arguments)
    assert done.code == 0, done.err
    return done.json["body"]


def refused(*arguments: str) -> str:
    done = deployed("create", "--dry-run", *HERE, *arguments)
    assert (done.code, done.out) == (1, "")
    return done.err


def test_a_new_endpoint_has_what_the_worker_needs() -> None:
    """Without options beside the bucket: secrets by reference, GPUs for bf16, time for a cold start, one timeout."""
    assert dry() == {
        "name": "qwen-image-edit",
        "image": "docker.io/you/qwen-worker:latest",
        "type": "QUEUE",
        "env": {
            "S3_ACCESS_KEY": "{{ RUNPOD_SECRET_S3_ACCESS_KEY }}",
            "S3_SECRET_KEY": "{{ RUNPOD_SECRET_S3_SECRET_KEY }}",
            "RUNPOD_INIT_TIMEOUT": "1800",
            "S3_ENDPOINT": "s3.us-west-000.backblazeb2.com",
            "S3_BUCKET": "pictures",
            "EXECUTION_TIMEOUT_SECONDS": "600",
        },
        "gpu": {
            "count": 1,
            "minCudaVersion": "13.0",
            "pools": ["AMPERE_80", "ADA_80_PRO", "HOPPER_141", "BLACKWELL_180", "BLACKWELL_96"],
        },
        "workers": {"min": 0, "max": 3, "idleTimeout": 5},
        "scaling": {"type": "QUEUE_DELAY", "queueDelay": 4},
        "flashboot": "FLASHBOOT",
        "timeout": 600000,
        "disk": 80,
    }


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--tag", "1.2.0"], {"image": "docker.io/you/qwen-worker:1.2.0"}),
        (["--image-name", "pictures", "--tag", "sha256:" + "0" * 64],
         {"image": "docker.io/you/pictures@sha256:" + "0" * 64}),
        (["--network-volume", "v1", "--network-volume", "v2"], {"networkVolumes": ["v1", "v2"], "disk": 20}),
        (["--network-volume", ""], {"networkVolumes": [], "disk": 80}),
        (["--model-from", "cached"], {"disk": 20}),
        (["--model-from", "image"], {"disk": 20}),
        (["--network-volume", "v1", "--model-from", "download"], {"disk": 80}),
        (["--env", f"T2I_MODEL_ID={TEXT.id}"], {"disk": 120}),
        (["--disk", "200"], {"disk": 200}),
        (["--registry", "localhost:5000/a/b__c", "--tag", "1_A.b@sha256:" + "0" * 64],
         {"image": "localhost:5000/a/b__c/qwen-worker:1_A.b@sha256:" + "0" * 64}),
        (["--env", "COMPUTED_CACHE_BYTES=40000000000"],
         {"gpu": {"count": 1, "minCudaVersion": "13.0", "pools": ["HOPPER_141", "BLACKWELL_180"]}}),
        (["--data-center", "EU-RO-1"], {"dataCenterIds": ["EU-RO-1"]}),
        (["--no-flashboot"], {"flashboot": "OFF"}),
        (["--request-count", "2"],
         {"scaling": {"type": "REQUEST_COUNT", "requestCount": 2}, "workers": {"min": 0, "max": 3}}),
        (["--queue-delay", "0.5", "--idle-timeout", "60", "--workers-min", "1", "--workers-max", "5"],
         {"scaling": {"type": "QUEUE_DELAY", "queueDelay": 0.5}, "workers": {"min": 1, "max": 5, "idleTimeout": 60}}),
        (["--env", "EXECUTION_TIMEOUT_SECONDS=1200.5"], {"timeout": 1200500}),
        (["--registry-auth-id", "r1"], {"registry": "r1"}),
        (["--gpu-pool", "ADA_24", "--min-cuda-version", "13.1"],
         {"gpu": {"count": 1, "minCudaVersion": "13.1", "pools": ["ADA_24"]}}),
        (["--name", "other"], {"name": "other"}),
    ],
)  # fmt: skip
def test_each_option_has_its_field(options: list[str], part: dict[str, Any]) -> None:
    """And the schema takes the body."""
    body = dry(*options)

    assert part.items() <= body.items()
    assert problems("CreateEndpointRequest", body) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"bogus": 1},
        {"gpu": {"pools": ["ADA_24"], "types": ["L4"]}},
        {"gpu": {"pools": []}},
        {"gpu": {"pools": ["ADA_24"], "minCudaVersion": "13"}},
        {"workers": {"min": 0, "maximum": 3}},
        {"scaling": {"type": "QUEUE_DELAY", "requestCount": 3}},
        {"flashboot": True},
        {"timeout": 0.5},
        {"disk": 0},
        {"env": {"WARMUP": True}},
        {"image": None},
    ],
)
def test_the_schema_refuses_what_runpod_refuses(wrong: dict[str, Any]) -> None:
    """Unknown fields above all: a slip of a name would go unseen."""
    body = dry()

    assert problems("CreateEndpointRequest", {**body, **wrong})
    change = {name: value for name, value in body.items() if name not in {"name", "type"}}
    assert problems("UpdateEndpointRequest", change) == []
    assert problems("UpdateEndpointRequest", {**change, **wrong})


def test_variables_come_from_files_and_options(tmp_path: Path) -> None:
    """Options win, an empty variable is none, and a secret may have another name."""
    file = tmp_path / "worker.env"
    file.write_text("PROFILE=fp8\nLOG_LEVEL=INFO\nHF_TOKEN=\n# PRESET=fast-8\n")

    body = dry("--env-file", str(file), "--env", "LOG_LEVEL=DEBUG", "--secret", "HF_TOKEN=hub", "--secret",
               "S3_ACCESS_KEY=b2_id")  # fmt: skip

    assert body["env"]["LOG_LEVEL"] == "DEBUG"
    assert body["env"]["HF_TOKEN"] == "{{ RUNPOD_SECRET_hub }}"  # noqa: S105 - a name
    assert body["env"]["S3_ACCESS_KEY"] == "{{ RUNPOD_SECRET_b2_id }}"
    assert "PRESET" not in body["env"]
    assert body["gpu"]["pools"][0] == "ADA_48_PRO"


def test_what_is_wrong_is_told_before_anything_is_sent() -> None:
    """All of it at once, with what to do; a secret is not repeated."""
    said = refused("--env", PLAIN, "--env", "MODL_ID=x", "--env", "K005plainvalue", "--env", "RUNPOD_API_KEY=rpa_1",
                   "--secret", "S3_ACCESS_KEY=K005plainvalue+", "--secret", "K005plainvalue")  # fmt: skip

    assert "S3_SECRET_KEY could be read" in said
    assert "make a secret in RunPod's console" in said
    assert "K005plainvalue" not in said
    assert "MODL_ID is no variable of the worker: is it MODEL_ID?" in said
    assert "an --env has no =: it must be KEY=VALUE" in said
    assert "--secret must be KEY=NAME" in said
    assert "RUNPOD_API_KEY is yours" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--env", "EXECUTION_TIMEOUT_SECONDS=100"], "EXECUTION_TIMEOUT_SECONDS: is 100, but the deadlines"),
        (["--env", "S3_REGION=eu-central-003", "--env", "PRESET=fast-9"], "PRESET: Input should be"),
        (["--env", "S3_REGION=eu-central-003"], "S3_REGION: is eu-central-003, but S3_ENDPOINT says us-west-000"),
        (["--gpu-pool", "AMPERE_16"], "--gpu-pool AMPERE_16: no profile fits"),
        (["--gpu-pool", "AMPERE_24", "--env", "PROFILE=fp8"], "PROFILE=fp8 needs a GPU that multiplies 8-bit floats"),
        (["--gpu-pool", "ADA_99"], "--gpu-pool ADA_99: there is no such pool"),
        (["--env", "S3_ACCESS_KEY="], "S3_ACCESS_KEY: Field required"),
        (["--env", "EXECUTION_TIMEOUT_SECONDS={{ RUNPOD_SECRET_t }}"], "say seconds, and no secret"),
        (["--model-from", "volume"], "say --network-volume ID"),
        (["--network-volume", "", "--model-from", "volume"], "say --network-volume ID"),
        (["--min-cuda-version", "13"], "--min-cuda-version must be as in 13.0"),
        (["--name", ""], "--name must not be empty"),
        (["--queue-delay", "inf"], "--queue-delay must be a number of seconds"),
        (["--queue-delay", "3", "--request-count", "2"], "exclude one another"),
        (["--idle-timeout", "3", "--request-count", "2"], "--idle-timeout is not for --request-count"),
        (["--workers-min", "4"], "--workers-min is more than --workers-max"),
        (["--registry", ""], "Say --registry docker.io/you"),
        (["--tag", "a b"], "is no image's name"),
        (["--tag", "\u00e9"], "is no image's name"),
        (["--registry", "https://docker.io/you"], "is no image's name"),
        (["--registry", "docker.io//you"], "is no image's name"),
        (["--registry", "docker.io/you:1"], "is no image's name"),
        (["--image-name", "docker.io/you/qwen-worker:1.0"], "is no image's name"),
        (["--secret", "LOG_LEVEL=x"], "--secret must be KEY=NAME"),
        (["--env", "MODEL_ID=me/model", "--env", "MODEL_CLASS=QwenImageEditPipeline", "--env",
          "MODEL_REVISION=" + "a" * 40], "name its GPUs with --gpu-pool"),
        (["--env", "PROFILE=int4", "--env", "MODEL_ID=Qwen/Qwen-Image-2.1", "--env",
          "MODEL_REVISION=" + "a" * 40, "--env", "ACCEPT_RESEARCH_LICENSE=1"], "no pool keeps this model"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(options: list[str], said: str) -> None:
    """In the words of whoever would refuse it later: the worker's settings, its profiles, RunPod."""
    assert said in refused(*options)


def test_a_release_shows_no_secret() -> None:
    """However it names the variable that was changed."""
    name, given = "S3_SECRET_KEY", "{{ RUNPOD_SECRET_b2 }}"
    releases = [{"diff": [{"field": "env.S3_SECRET_KEY", "old": "plain", "new": given},
                          {"field": "env", "old": {name: "plain", "PRESET": "exact"}, "new": None}]}]  # fmt: skip

    assert bodies.hidden(releases) == [
        {"diff": [{"field": "env.S3_SECRET_KEY", "old": "(a secret)", "new": given},
                  {"field": "env", "old": {name: "(a secret)", "PRESET": "exact"}, "new": None}]}
    ]  # fmt: skip


def test_a_file_that_is_no_text_is_told(tmp_path: Path) -> None:
    """Its bytes are no UTF-8."""
    file = tmp_path / "latin.env"
    file.write_bytes(b"S3_BUCKET=caf\xe9\n")

    assert f"--env-file {file} is not in UTF-8" in refused("--env-file", str(file))


def test_what_a_secret_holds_is_not_looked_into() -> None:
    """Whatever variable it is the value of; the others are checked all the same."""
    held = [part for name in ("S3_ENDPOINT", "S3_BUCKET", "S3_REGION", "PRESET")
            for part in ("--env", f"{name}={{{{ RUNPOD_SECRET_one }}}}")]  # fmt: skip

    assert dry(*held)["env"]["S3_ENDPOINT"] == "{{ RUNPOD_SECRET_one }}"
    assert dry(*held[4:6])["env"]["S3_REGION"] == "{{ RUNPOD_SECRET_one }}"
    assert "ATTENTION: Input should be" in refused(*held, "--env", "ATTENTION=x")


def test_a_model_of_the_volume_needs_no_commit() -> None:
    """A folder on the worker cannot be looked at from here."""
    folder = ("--env", "MODEL_ID=/runpod-volume/mine", "--env", "MODEL_CLASS=QwenImageEditPipeline")

    body = dry(*folder, "--gpu-pool", "AMPERE_80", "--network-volume", "v1")

    assert body["env"]["MODEL_ID"] == "/runpod-volume/mine"
    assert "MODEL_REVISION" not in body["env"]


def test_the_secrets_are_those_of_the_settings() -> None:
    """Each secret of the worker is one here."""
    secret = {name.upper() for name, field in Settings.model_fields.items() if _is_secret(field.annotation)}

    assert secret == set(bodies.SECRETS)


def _is_secret(annotation: Any) -> bool:
    return annotation is SecretStr


def test_pools_are_those_on_which_the_model_stays_as_it_is() -> None:
    """The cheapest first, of unknown price last; with words alone too, only the largest have room."""
    settings = bodies.settings_of(bodies.SOME_BUCKET)
    rows = gpu_pools.pools(settings)
    prices = [one.usd_per_second for one in rows]
    known = [price for price in prices if price is not None]

    assert {one.id for one in rows} == {one.pool for one in CARDS}
    assert prices == [*sorted(known), *[None] * (len(prices) - len(known))]
    assert gpu_pools.defaults(bodies.settings_of({**bodies.SOME_BUCKET, "T2I_MODEL_ID": TEXT.id})) == [
        "HOPPER_141", "BLACKWELL_180",
    ]  # fmt: skip


def test_the_table_of_pools() -> None:
    """For people and for programs."""
    for_people, for_programs = deployed("pools"), deployed("pools", "--json", "--env", "PROFILE=fp8")

    (line,) = (one for one in for_people.out.splitlines() if "AMPERE_80" in one)
    assert line.split() == ["*", "AMPERE_80", "bf16", "0.00076", "A100", "80GB"]
    assert "AMPERE_16      does not fit" in for_people.out
    rows = {row["id"]: row for row in for_programs.json}
    assert rows["ADA_48_PRO"]["default"]
    assert rows["ADA_48_PRO"]["profiles"] == ["fp8"]
    assert "compute capability" in rows["AMPERE_80"]["problem"]


def test_nothing_of_this_shell_reaches_the_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings of whoever deploys are not those of the worker."""
    monkeypatch.setenv("S3_BUCKET", "mine")
    monkeypatch.setenv("PROFILE", "nonsense")

    done: Done = deployed("create", "--dry-run", "--registry", "docker.io/you", *BUCKET[:2])

    assert "S3_BUCKET: Field required" in done.err
    assert "PROFILE" not in done.err


def test_neither_torch_nor_the_sdk_is_imported() -> None:
    """It runs where only requirements-ops.txt is installed."""
    heavy = ("torch", "runpod", "diffusers", "transformers", "minio", "aiohttp", "huggingface_hub")
    code = f"import sys, json, ops.deploy; print(json.dumps([one for one in {heavy!r} if one in sys.modules]))"

    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

    assert json.loads(done.stdout) == []
