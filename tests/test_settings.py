"""The environment."""

import json
from ipaddress import ip_network
from pathlib import Path

import pytest

from qwen_worker.family import FAMILY, TEXT_TO_IMAGE, Row
from qwen_worker.hosts import HostList
from qwen_worker.settings import Settings, SettingsError, load_settings, volume_home

REQUIRED = {
    "S3_ENDPOINT": "s3.us-west-000.backblazeb2.com",
    "S3_ACCESS_KEY": "key-id",
    "S3_SECRET_KEY": "application-key",  # pragma: allowlist secret
    "S3_BUCKET": "pictures",
}


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable of this shell and no `.env` of this checkout reaches a test."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The required variables are set."""
    for name, value in REQUIRED.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def problems() -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings()
    return "\n".join(caught.value.problems)


def test_every_missing_variable_is_named_at_once() -> None:
    """An operator mends the environment once."""
    said = problems()

    assert all(name in said for name in REQUIRED)


def test_every_wrong_variable_is_named_at_once(given: pytest.MonkeyPatch) -> None:
    """Each problem begins with its variable."""
    wrong = {
        "S3_ENDPOINT": "https://host/path",
        "S3_ACCESS_KEY": " ",
        "S3_SECRET_KEY": "\t",
        "S3_BUCKET": "My_Bucket!",
        "S3_SECURE": "maybe",
        "S3_OBJECT_PREFIX": "no/../way/",
        "MODEL_ID": "someone/else",
        "SSL_CERT_FILE": "/not/there.pem",
        "PRESIGN_EXPIRY": "604801",
        "MAX_IMAGE_BYTES": "0",
        "TIMEOUT_SECONDS": "-1",
        "MAX_OUTPUT_PIXELS": "0",
        "PREFETCH": "9",
        "LOG_LEVEL": "LOUD",
        "ALLOWED_PRIVATE_NETWORKS": "nonsense",
        "SOURCE_PORTS": "http",
        "SOURCE_HOSTS": "http://example.com/",
    }
    for name, value in wrong.items():
        given.setenv(name, value)

    said = problems()

    expected = (set(wrong) - {"MODEL_ID"}) | {"MODEL_CLASS", "MODEL_REVISION"}
    assert {line.split(":")[0] for line in said.splitlines()} == expected


def test_defaults_are_the_documented_ones(given: pytest.MonkeyPatch) -> None:
    """Unset and empty are the same."""
    given.setenv("S3_REGION", "")
    settings = load_settings()

    assert settings.s3_region == "us-west-000"
    assert settings.s3_secure
    assert settings.s3_object_prefix == "qwen-image-edit/"
    assert settings.presign_expiry == 86400
    assert settings.max_image_bytes == 26214400
    assert settings.timeout_seconds == 120
    assert settings.inference_timeout_seconds == 300
    assert settings.max_inference_steps == 50
    assert settings.model_id == "Qwen/Qwen-Image-Edit"
    assert settings.model_revision == "ac7f9318f633fc4b5778c59367c8128225f1e3de"
    assert settings.model_class == "QwenImageEditPipeline"
    assert settings.max_output_pixels == 50_000_000
    assert not settings.allow_cpu
    assert settings.allowed_private_networks == ()
    assert settings.ports == (range(80, 81), range(443, 444), range(8080, 8081), range(8443, 8444))
    assert settings.hosts == HostList()


def test_deadlines_that_outlast_runpods_are_refused(given: pytest.MonkeyPatch) -> None:
    """With what to do; those that fit are what a job has."""
    given.setenv("INFERENCE_TIMEOUT_SECONDS", "302")
    assert problems().startswith("EXECUTION_TIMEOUT_SECONDS: is 600, but the deadlines of a job come to 571 s")

    given.setenv("EXECUTION_TIMEOUT_SECONDS", "602")
    budget = load_settings().budget

    assert budget.total == 572
    assert (budget.stages["fetch"], budget.stages["edit"]) == (130, 302)


def test_dot_env_is_read_and_the_environment_wins(given: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`.env` is for local use."""
    # pragma: allowlist nextline secret
    (tmp_path / ".env").write_text("S3_BUCKET=from-file\nS3_OBJECT_PREFIX=from-file/\nSOMETHING_ELSE=1\n")
    given.setenv("S3_OBJECT_PREFIX", "from-environment/")
    given.delenv("S3_BUCKET")
    settings = load_settings()

    assert (settings.s3_bucket, settings.s3_object_prefix) == ("from-file", "from-environment/")


@pytest.mark.parametrize(
    ("endpoint", "secure", "host"),
    [
        ("s3.example.com", "true", "s3.example.com"),
        ("https://s3.example.com/", "true", "s3.example.com"),
        ("HTTPS://S3.Example.com:443", "true", "s3.example.com:443"),
        ("http://127.0.0.1:9000", "false", "127.0.0.1:9000"),
    ],
)
def test_an_endpoint_may_carry_its_scheme(given: pytest.MonkeyPatch, endpoint: str, secure: str, host: str) -> None:
    """Backblaze shows it with one, MinIO's client wants none."""
    given.setenv("S3_ENDPOINT", endpoint)
    given.setenv("S3_SECURE", secure)

    assert load_settings().s3_host == host


@pytest.mark.parametrize(
    "endpoint",
    ["host:99999", "host:abc", "host#part", "host?x=1", "ho st", "user@host", "https://", "host/path", "host\\path"],
)
def test_an_endpoint_that_is_no_host_is_refused(given: pytest.MonkeyPatch, endpoint: str) -> None:
    """The client would raise something that names no variable."""
    given.setenv("S3_ENDPOINT", endpoint)

    assert problems().startswith("S3_ENDPOINT: ")


def test_white_space_around_a_secret_is_not_part_of_it(given: pytest.MonkeyPatch) -> None:
    """A key that was pasted with its line break would sign wrongly."""
    given.setenv("S3_SECRET_KEY", " application-key\n")

    assert load_settings().s3_secret_key.get_secret_value() == "application-key"


def test_an_endpoint_that_contradicts_s3_secure_is_refused(given: pytest.MonkeyPatch) -> None:
    """Neither can be chosen for the operator."""
    given.setenv("S3_ENDPOINT", "http://127.0.0.1:9000")

    assert "S3_SECURE" in problems()


@pytest.mark.parametrize("name", ["a..b", "a.-b", "1.2.3.4", "ab", "-abc", "abc-", "a b"])
def test_a_name_that_no_bucket_has_is_refused(given: pytest.MonkeyPatch, name: str) -> None:
    """The client would refuse it in every job."""
    given.setenv("S3_BUCKET", name)

    assert problems().startswith("S3_BUCKET: ")


def test_backblazes_endpoint_tells_the_region(given: pytest.MonkeyPatch) -> None:
    """One that differs would make wrong signatures."""
    given.setenv("S3_ENDPOINT", "https://s3.eu-central-003.backblazeb2.com")
    assert problems() == "S3_REGION: is us-west-000, but S3_ENDPOINT says eu-central-003"

    given.setenv("S3_REGION", "eu-central-003")
    assert load_settings().s3_region == "eu-central-003"


def test_a_missing_model_folder_is_said(given: pytest.MonkeyPatch) -> None:
    """Else it would be taken for a repository."""
    given.setenv("MODEL_ID", "/not/there")

    assert "no folder of this name" in problems()


def test_an_unknown_model_must_be_pinned(given: pytest.MonkeyPatch) -> None:
    """A moving branch is code and weights that nobody looked at."""
    given.setenv("MODEL_ID", "someone/else")
    given.setenv("MODEL_CLASS", "QwenImageEditPlusPipeline")
    assert problems().startswith("MODEL_REVISION")

    given.setenv("MODEL_REVISION", "main")
    assert "MODEL_REVISION" in problems()

    given.setenv("MODEL_REVISION", "0" * 40)
    assert load_settings().model_revision == "0" * 40

    # As an image says it in which another model is baked.
    given.setenv("MODEL_REVISION", FAMILY["Qwen/Qwen-Image-Edit-2509"].revision or "")
    assert "MODEL_REVISION: is a commit of Qwen/Qwen-Image-Edit-2509, not of someone/else" in problems()


@pytest.mark.parametrize("row", FAMILY.values(), ids=lambda row: row.id)
def test_a_model_of_the_table_brings_what_is_known_of_it(given: pytest.MonkeyPatch, row: Row) -> None:
    """Class, defaults and commit; the operator names the commit where none is known."""
    given.setenv("MODEL_ID", row.id)
    if row.revision is None:
        assert problems().startswith("MODEL_REVISION: must name a commit")
        given.setenv("MODEL_REVISION", "0" * 40)
    if row.research_only:
        given.setenv("ACCEPT_RESEARCH_LICENSE", "1")
    settings = load_settings()

    assert settings.model == row
    assert settings.model_class == row.pipeline
    assert settings.model_revision == (row.revision or "0" * 40)

    given.setenv("MODEL_CLASS", "QwenImageEditPipeline" if row.takes_several else "QwenImageEditPlusPipeline")
    assert problems().startswith("MODEL_CLASS: is ")


@pytest.mark.parametrize(
    ("pipeline", "steps", "scale", "several", "masks"),
    [
        ("QwenImageEditPipeline", 30, 4.0, False, True),
        ("QwenImageEditPlusPipeline", 40, 4.0, True, True),
        ("QwenImage21Pipeline", 40, 1.0, True, False),
    ],
)
def test_another_model_needs_its_class(
    given: pytest.MonkeyPatch, tmp_path: Path, pipeline: str, steps: int, scale: float, *, several: bool, masks: bool
) -> None:
    """Which brings its defaults; a folder too, whose content nobody looked at."""
    given.setenv("MODEL_ID", str(tmp_path))
    given.setenv("ACCEPT_RESEARCH_LICENSE", "1")
    assert problems().startswith("MODEL_CLASS: must name the class")

    given.setenv("MODEL_CLASS", pipeline)
    row = load_settings().model
    assert (row.id, row.pipeline, row.steps, row.cfg_scale) == (str(tmp_path), pipeline, steps, scale)
    assert (row.takes_several, row.takes_masks) == (several, masks)
    assert not row.tested


@pytest.mark.parametrize("model", ["Qwen/Qwen-Image-2.1", "someone/else"])
def test_weights_for_research_only_must_be_accepted(given: pytest.MonkeyPatch, model: str) -> None:
    """Of every model of the class; the error names the licence and what to set. Nothing else needs it."""
    given.setenv("MODEL_ID", model)
    given.setenv("MODEL_CLASS", "QwenImage21Pipeline")
    given.setenv("MODEL_REVISION", "0" * 40)
    for no in ("", "0", "false"):
        given.setenv("ACCEPT_RESEARCH_LICENSE", no)
        said = problems()
        assert said.startswith(f"ACCEPT_RESEARCH_LICENSE: must be 1 to use {model}")
        assert "Qwen Research License, which forbids commercial use" in said

    given.setenv("ACCEPT_RESEARCH_LICENSE", "1")
    assert load_settings().accept_research_license

    given.setenv("ACCEPT_RESEARCH_LICENSE", "")
    given.setenv("MODEL_ID", "someone/else")
    given.setenv("MODEL_CLASS", "QwenImageEditPlusPipeline")
    assert not load_settings().accept_research_license


def test_the_licence_is_named_beside_every_other_problem(given: pytest.MonkeyPatch) -> None:
    """Of a model of the table also where MODEL_CLASS is wrong."""
    given.setenv("MODEL_ID", "Qwen/Qwen-Image-2.1")
    given.setenv("MODEL_CLASS", "QwenImageEditPipeline")

    assert [line.split(":")[0] for line in problems().splitlines()] == [
        "MODEL_CLASS", "MODEL_REVISION", "ACCEPT_RESEARCH_LICENSE",
    ]  # fmt: skip


def test_a_local_folder_needs_no_revision(given: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """There is nothing to pin."""
    given.setenv("MODEL_ID", str(tmp_path))
    given.setenv("MODEL_CLASS", "QwenImageEditPipeline")

    assert load_settings().model_revision == "local"


def test_models_lie_where_hf_home_says(given: pytest.MonkeyPatch) -> None:
    """First; without it and without a volume where the library keeps them."""
    given.setenv("HF_HUB_CACHE", "/library")
    assert load_settings().hub_caches == (Path("/library"),)

    given.setenv("HF_HOME", "/somewhere")
    assert load_settings().hub_caches == (Path("/somewhere/hub"), Path("/library"))


def test_a_mounted_volume_holds_the_models(tmp_path: Path) -> None:
    """Where RunPod's own cached models lie."""
    assert volume_home(tmp_path) == tmp_path / "huggingface-cache"
    assert volume_home(tmp_path / "not-mounted") is None


def test_private_networks_are_a_list(given: pytest.MonkeyPatch) -> None:
    """Comma-separated."""
    given.setenv("ALLOWED_PRIVATE_NETWORKS", "10.0.0.0/8, fd00::/8")

    assert load_settings().allowed_private_networks == (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))


def test_ports_and_hosts_of_sources_are_lists(given: pytest.MonkeyPatch) -> None:
    """Comma-separated; what they mean is tested where they are read."""
    given.setenv("SOURCE_PORTS", "443, 8000-9000")
    given.setenv("SOURCE_HOSTS", "*.Example.com, !bad.example.com")
    settings = load_settings()

    assert settings.ports == (range(443, 444), range(8000, 9001))
    assert settings.hosts == HostList(("*.example.com",), ("bad.example.com",))


def test_jobs_are_taken_ahead_by_themselves_or_by_number(given: pytest.MonkeyPatch) -> None:
    """By default as many as the forecast lets in, up to what a number may be."""
    default = load_settings()
    given.setenv("PREFETCH", "0")
    none = load_settings()
    given.setenv("PREFETCH", "5")

    assert (default.prefetch, default.slots) == ("auto", 5)
    assert (none.prefetch, none.slots) == (0, 1)
    assert "PREFETCH" in problems()


def test_secrets_do_not_show(given: pytest.MonkeyPatch) -> None:
    """Neither in a repr nor in an error."""
    given.setenv("PREFETCH", "9")
    said = problems()
    given.delenv("PREFETCH")

    assert "application-key" not in said + repr(load_settings())


def test_without_a_text_to_image_model_there_is_none(given: pytest.MonkeyPatch) -> None:
    """A commit alone names no model."""
    given.setenv("T2I_MODEL_REVISION", "main")
    settings = load_settings()

    assert (settings.t2i_model_id, settings.t2i_model_revision, settings.t2i) == ("", "", None)


@pytest.mark.parametrize("row", TEXT_TO_IMAGE.values(), ids=lambda row: row.id)
def test_a_text_to_image_model_of_the_table_is_pinned(given: pytest.MonkeyPatch, row: Row) -> None:
    """To the commit that was looked at, unless another is named."""
    given.setenv("T2I_MODEL_ID", row.id)
    settings = load_settings()
    assert (settings.t2i, settings.t2i_model_revision) == (row, row.revision)
    assert row.tested

    given.setenv("T2I_MODEL_REVISION", "0" * 40)
    assert load_settings().t2i_model_revision == "0" * 40


def test_another_text_to_image_model_must_be_pinned(given: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As an edit model; a folder has nothing to pin. It gets the defaults of its class, as untested."""
    given.setenv("T2I_MODEL_ID", "someone/words")
    assert problems().startswith("T2I_MODEL_REVISION: must name a commit of someone/words")
    given.setenv("T2I_MODEL_REVISION", "main")
    assert problems().startswith("T2I_MODEL_REVISION: must name a commit of someone/words")
    given.setenv("T2I_MODEL_ID", "/not/there")
    assert "no folder of this name" in problems()

    given.setenv("T2I_MODEL_ID", str(tmp_path))
    settings = load_settings()
    assert settings.t2i_model_revision == "local"
    assert settings.t2i
    assert (settings.t2i.pipeline, settings.t2i.steps, settings.t2i.tested) == ("QwenImagePipeline", 50, False)


def test_the_kinds_of_models_are_not_mixed_up(given: pytest.MonkeyPatch) -> None:
    """Each belongs into its own variable; the error says into which."""
    given.setenv("MODEL_ID", "Qwen/Qwen-Image")
    assert problems().startswith("MODEL_ID: is Qwen/Qwen-Image, which makes pictures from words alone: name it in T2I")
    assert len(problems().splitlines()) == 1

    given.setenv("MODEL_ID", "")
    given.setenv("MODEL_CLASS", "QwenImagePipeline")
    assert problems().startswith("MODEL_CLASS: ")

    given.setenv("MODEL_CLASS", "")
    given.setenv("T2I_MODEL_ID", "Qwen/Qwen-Image-Edit-2511")
    assert problems().startswith("T2I_MODEL_ID: is Qwen/Qwen-Image-Edit-2511, which edits pictures: name it in MODEL")


def test_qwen_image_21_shares_its_parts_with_none(given: pytest.MonkeyPatch) -> None:
    """The error says why, and what to do."""
    given.setenv("MODEL_ID", "Qwen/Qwen-Image-2.1")
    given.setenv("MODEL_REVISION", "0" * 40)
    given.setenv("ACCEPT_RESEARCH_LICENSE", "1")
    given.setenv("T2I_MODEL_ID", "Qwen/Qwen-Image")

    assert problems() == (
        "T2I_MODEL_ID: does not go with a QwenImage21Pipeline model, whose text encoder and VAE are others: leave it "
        "empty, or use a MODEL_ID such as Qwen/Qwen-Image-Edit-2509"
    )


def loras_of(*entries: dict[str, str], **fields: str) -> str:
    usual = {"name": "a", "source": "someone/style", "revision": "0" * 40, "weight_file": "in/a.safetensors"}
    return json.dumps([{**usual, **entry, **fields} for entry in entries or [{}]])


def test_loras_are_a_list(given: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In its order; a folder needs no commit, and a trigger word is optional."""
    given.setenv("LORAS", loras_of({}, {"name": "b", "trigger_word": " pencil sketch "}, {"name": "C-1_2"}))
    settings = load_settings()
    assert [(one.name, one.trigger_word) for one in settings.loras] == [
        ("a", ""),
        ("b", "pencil sketch"),
        ("C-1_2", ""),
    ]
    assert (settings.loras[0].revision, settings.loras[0].weight_file) == ("0" * 40, "in/a.safetensors")

    given.setenv("LORAS", json.dumps([{"name": "a", "source": str(tmp_path), "weight_file": "a.safetensors"}]))
    assert load_settings().loras[0].revision == "local"

    for nothing in ("", "[]"):
        given.setenv("LORAS", nothing)
        assert load_settings().loras == ()


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ("a=b", "LORAS: is not JSON: Expecting value"),
        ('{"name": "a"}', "LORAS: must be a JSON list"),
        ('["a"]', "LORAS: entry 1: Input should be"),
        (loras_of({}, {"name": "b"}, {}), "LORAS: has more than one LoRA of the name a"),
        (loras_of({}, {"name": "b c"}), "LORAS: entry 2: name: String should match pattern"),
        (loras_of(name="b\n"), "LORAS: entry 1: name: String should match pattern"),
        (loras_of(name="b" * 65), "LORAS: entry 1: name: String should match pattern"),
        (loras_of(name=""), "LORAS: entry 1: name: String should match pattern"),
        (loras_of(revision=""), "LORAS: entry 1: revision: must name a commit of someone/style by its 40 hex digits"),
        (loras_of(revision="main"), "LORAS: entry 1: revision: must name a commit"),
        (loras_of(source="./not-there"), "LORAS: entry 1: source: there is no folder of this name"),
        (loras_of(source=""), "LORAS: entry 1: source: String should have at least 1 character"),
        (loras_of(source="style"), "LORAS: entry 1: source: must be a repository, as in org/repo, or a folder"),
        (loras_of(source="https://host/a/b"), "LORAS: entry 1: source: must be a repository"),
        (loras_of(weight_file="a.bin"), "LORAS: entry 1: weight_file: must be a .safetensors file"),
        (loras_of(weight_file="/a.safetensors"), "LORAS: entry 1: weight_file: must be the path of a file inside"),
        (loras_of(weight_file="in/../../a.safetensors"), "LORAS: entry 1: weight_file: must be the path of a file"),
        (loras_of(weight_file="../a.safetensors"), "LORAS: entry 1: weight_file: must be the path of a file inside"),
        (loras_of(weight_file="in\\a.safetensors"), "LORAS: entry 1: weight_file: must be the path of a file inside"),
        (loras_of(weight_file="./a.safetensors"), "LORAS: entry 1: weight_file: must be the path of a file inside"),
        (loras_of(weight_file=""), "LORAS: entry 1: weight_file: must be the path of a file inside"),
        (loras_of(trigger_word="x" * 201), "LORAS: entry 1: trigger_word: String should have at most 200 characters"),
        (loras_of(scale="1"), "LORAS: entry 1: scale: Extra inputs are not permitted"),
        (json.dumps([{"name": "a", "source": "a/b", "revision": "0" * 40}]), "LORAS: entry 1: weight_file: Field req"),
    ],
)
def test_what_is_wrong_with_a_lora_is_named(given: pytest.MonkeyPatch, said: str, problem: str) -> None:
    """The entry, counted from 1, the field, and what is wrong with it."""
    given.setenv("LORAS", said)

    assert problems().startswith(problem)


def test_every_wrong_entry_is_named_at_once(given: pytest.MonkeyPatch) -> None:
    """An operator mends the list once."""
    given.setenv("LORAS", loras_of({"name": "b c", "weight_file": "a.bin"}, {"revision": ""}))

    assert [line.split(":")[1:3] for line in problems().splitlines()] == [
        [" entry 1", " name"], [" entry 1", " weight_file"], [" entry 2", " revision"],
    ]  # fmt: skip
