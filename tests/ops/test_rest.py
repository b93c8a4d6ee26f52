"""The client of REST v2: what it tries again, and what it says."""

import time
from itertools import islice

import pytest

from local.runpod_faults import Fault
from local.runpod_rest import KEY, READ_ONLY_KEY, LocalRest
from ops.rest import DeployError, Jobs, Rest, key

PAUSE_S = 0.01
BODY = {
    "name": "x", "type": "QUEUE", "image": "docker.io/you/qwen-worker:1", "gpu": {"pools": ["ADA_24"]},
    "workers": {"min": 0, "max": 3, "idleTimeout": 5}, "scaling": {"type": "QUEUE_DELAY", "queueDelay": 4},
}  # fmt: skip


def client(secret: str = KEY) -> Rest:
    return Rest(secret, PAUSE_S)


def test_an_endpoint_lives_and_ends(rest: LocalRest) -> None:
    """Made, found, changed and deleted, each by the method and with the key that RunPod wants."""
    made = client().create(BODY)
    client().change(made["id"], {"workers": {"min": 0, "max": 1, "idleTimeout": 5}})

    assert client().endpoint(made["id"])["workers"]["max"] == 1
    assert [one["version"] for one in client().releases(made["id"])["releases"]] == [2, 1]
    client().delete(made["id"])
    assert client().endpoints() == []
    assert {one.headers["Authorization"] for one in rest.requests} == {f"Bearer {KEY}"}


@pytest.mark.slow
def test_a_busy_api_is_waited_for(rest: LocalRest) -> None:
    """As long as Retry-After says, whatever is asked: nothing was done yet."""
    rest.fault = Fault(status=429, headers={"Retry-After": "1"}, times=1)
    started = time.monotonic()

    client().create(BODY)

    assert time.monotonic() - started >= 1
    assert len(rest.requests) == 2


@pytest.mark.parametrize("fault", [Fault(status=503), Fault(status=504), Fault("reset")])
def test_what_may_be_done_twice_is_tried_again(rest: LocalRest, fault: Fault) -> None:
    """And what may not is not."""
    endpoint_id = client().create(BODY)["id"]
    rest.requests.clear()
    rest.fault, fault.times = fault, 2
    assert client().endpoint(endpoint_id)["name"] == "x"
    assert len(rest.requests) == 3

    fault.times = 1
    with pytest.raises(DeployError, match=r"503|504|it may have been done all the same"):
        client().create(BODY)
    assert len(rest.requests) == 4


def test_an_answer_that_breaks_off_is_told(rest: LocalRest) -> None:
    """Of a request that may have been done, with that."""
    rest.lost = Fault("cut")

    with pytest.raises(DeployError, match=r"\(ChunkedEncodingError\): is there a network, or a proxy\?$"):
        client().endpoints()
    with pytest.raises(DeployError, match="it may have been done all the same"):
        client().create(BODY)
    assert [one["name"] for one in rest.endpoints.values()] == ["x"]


def test_tries_have_an_end(rest: LocalRest) -> None:
    """Five, and none for which a person would have to wait too long."""
    rest.fault = Fault(status=429, headers={"Retry-After": "0"})
    with pytest.raises(DeployError, match="limits this API key"):
        client().endpoints()
    assert len(rest.requests) == 5

    rest.fault = Fault(status=429, headers={"Retry-After": "3600"})
    with pytest.raises(DeployError, match="try again in 3600 s"):
        client().endpoints()
    assert len(rest.requests) == 6


def test_a_deletion_whose_answer_got_lost_is_one(rest: LocalRest) -> None:
    """The second try finds nothing, which is what was wanted."""
    endpoint_id = client().create(BODY)["id"]
    rest.lost = Fault(status=502, times=1)

    client().delete(endpoint_id)

    assert rest.endpoints == {}


def test_refusals_say_what_to_do(rest: LocalRest) -> None:
    """Each in one sentence."""
    endpoint_id = client().create(BODY)["id"]
    with pytest.raises(DeployError, match=r"does not accept the API key .*set RUNPOD_API_KEY"):
        client("wrong").endpoints()
    with pytest.raises(DeployError, match=r"may not do this \(access denied\): give it read and write access"):
        client(READ_ONLY_KEY).delete(endpoint_id)
    with pytest.raises(DeployError, match=r"there is no endpoint nothere for this API key"):
        client().endpoint("nothere")
    with pytest.raises(DeployError, match=r"is no endpoint's id"):
        client().endpoint("../templates")
    with pytest.raises(DeployError, match=r"'\.\./\.\./x\?y' is no worker's id"):
        next(client().log(endpoint_id, "../../x?y", 1, 0.1, follow=False))
    with pytest.raises(DeployError, match=r"refuses the endpoint: \$\.disk: 0 is less than.*; \$: .*'bogus'"):
        client().create({**BODY, "disk": 0, "bogus": 1})
    rest.fault = Fault(status=500, body="<html>", content_type="text/html")
    with pytest.raises(DeployError, match="answers 500 to list of endpoints: try again"):
        client().endpoints()
    rest.fault = Fault(status=200, body="<html>", content_type="text/html")
    with pytest.raises(DeployError, match=r"something else than JSON: is http://127.0.0.1:.* right"):
        client().endpoints()


def test_the_key_is_not_told(rest: LocalRest) -> None:
    """Not even where the API repeats it."""
    rest.fault = Fault(status=401, body='{"detail": "bad token rest-key"}')

    with pytest.raises(DeployError, match=r"\(bad token \*\*\*\)"):
        client().endpoints()


@pytest.mark.parametrize("said", ["rpa_one\nX-Other: two", "rpa_one two", "rpa_\u201cone\u201d"])
def test_what_is_no_key_is_not_repeated(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    """As no header may have it, an error would be a traceback with the key in it."""
    monkeypatch.setenv("RUNPOD_API_KEY", said)

    with pytest.raises(DeployError, match="that no API key has") as told:
        key()
    assert "rpa_" not in str(told.value)


@pytest.mark.parametrize("address", ["http://api.example.com", "ftp://127.0.0.1", "api.runpod.io", "https://["])
def test_the_key_never_travels_in_the_open(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Only this machine is reached without TLS."""
    monkeypatch.setenv("RUNPOD_REST_URL", address)
    monkeypatch.setenv("RUNPOD_ENDPOINT_BASE_URL", address)

    with pytest.raises(DeployError, match=r"must begin with https://|is no address"):
        client()
    with pytest.raises(DeployError, match=r"must begin with https://|is no address"):
        Jobs("ep1", KEY)


def test_the_key_goes_nowhere_else(rest: LocalRest) -> None:
    """A redirect is not followed."""
    with LocalRest() as elsewhere:
        rest.fault = Fault(status=307, headers={"Location": f"http://127.0.0.1:{elsewhere.port}/v2/serverless"})
        with pytest.raises(DeployError, match="answers 307"):
            client().endpoints()
        assert elsewhere.requests == []


def test_nobody_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network there is a sentence, and no traceback."""
    monkeypatch.setenv("RUNPOD_REST_URL", "http://127.0.0.1:9")

    with pytest.raises(DeployError, match=r"127.0.0.1:9 cannot be reached \(ConnectionError\)"):
        client().endpoints()


@pytest.mark.usefixtures("rest")
def test_a_log_ends_when_it_is_told() -> None:
    """Its stream stays open; signs of life are no lines."""
    endpoint_id = client().create(BODY)["id"]

    events = list(client().log(endpoint_id, "w1", 1, 0.3, follow=False))

    assert [event["line"] for event in events] == ["worker ready"]


def test_a_log_of_a_worker_that_goes_on_ends(rest: LocalRest) -> None:
    """After so many lines, or after so long."""
    endpoint_id = client().create(BODY)["id"]
    rest.chatters = True
    started = time.monotonic()

    assert len(list(client().log(endpoint_id, "w1", 2, 60, follow=False))) == 2
    assert len(list(client().log(endpoint_id, "w1", 5000, 0.05, follow=False))) > 2
    assert list(client().log(endpoint_id, "w1", 0, 60, follow=False)) == []
    assert time.monotonic() - started < 5


def test_a_log_may_have_anything_in_it(rest: LocalRest) -> None:
    """What is no object is a line."""
    endpoint_id = client().create(BODY)["id"]
    rest.fault = Fault(body="data: 5\n\ndata: [1]\n\ndata: {\n\n", content_type="text/event-stream")

    events = list(client().log(endpoint_id, "w1", 100, 1, follow=False))

    assert events == [{"source": "", "ts": "", "line": line} for line in ("5", "[1]", "{")]


def test_a_log_that_breaks_off_goes_on(rest: LocalRest) -> None:
    """From the last line on, and no line twice."""
    endpoint_id = client().create(BODY)["id"]
    rest.breaks = True
    stream = client().log(endpoint_id, "w1", 100, 0.3, follow=True)

    first = [event["line"] for event in islice(stream, 2)]
    rest.lines.append("job done")

    assert first == ["loading", "worker ready"]
    assert next(stream)["line"] == "job done"
