"""Bring the worker onto RunPod Serverless: python -m ops.deploy --help.

An endpoint is named by --endpoint-id, by --name if only one has that name, or, where neither is said, by
RUNPOD_ENDPOINT_ID: nothing is remembered on disk. RUNPOD_API_KEY is the API key. What is for people goes to stderr
where stdout is JSON.
"""

import functools
import inspect
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass, replace
from threading import Thread
from typing import Annotated, Any

import typer
from typer import Option

from ops import bodies, gpu_pools
from ops import smoke as smoke_test
from ops.build import build_command, push_command, run
from ops.options import Built, Engine, ImageName, Meant, ModelFrom, Said, Variables
from ops.rest import Answer, DeployError, Jobs, Rest, key, path_of, rest_url
from qwen_worker.cards import PRICES_AS_OF
from qwen_worker.family import EDIT

NAME = "qwen-image-edit"
CTRL_C = 130  # the exit code, as shells have it
QUIET_S = 3.0  # without a line, what a log has is told

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

DryRun = Annotated[bool, Option("--dry-run", help="print as JSON what would be sent or run, and change nothing")]
Json = Annotated[bool, Option("--json", help="for programs")]


def tell(line: str) -> None:
    """Something for people, beside what is for programs."""
    print(line, file=sys.stderr, flush=True)


def show(made: Any) -> None:
    """Something for programs, without the secrets that somebody may have written into an endpoint."""
    print(json.dumps(bodies.hidden(made), indent=2))


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Make a command of a function. A parameter that is a dataclass stands for options that are its fields."""
    signature = inspect.signature(function, eval_str=True)
    kinds: dict[str, Any] = {name: one.annotation for name, one in signature.parameters.items()}
    groups: dict[str, Any] = {name: kind for name, kind in kinds.items() if is_dataclass(kind)}
    fields = {name: list(inspect.signature(kind).parameters.values()) for name, kind in groups.items()}

    @functools.wraps(function)
    def called(**given: Any) -> None:
        for name, kind in groups.items():
            given[name] = kind(**{one.name: given.pop(one.name) for one in fields[name]})
        try:
            function(**given)
        except DeployError as error:
            tell(str(error))
            raise typer.Exit(1) from None
        except KeyError as error:
            tell(f"RunPod's answer lacks {error}: it is not as published")
            raise typer.Exit(1) from None

    own = [one for name, one in signature.parameters.items() if name not in groups]
    parameters = [one for group in fields.values() for one in group]
    called.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in (*own, *parameters)]
    )
    return app.command()(called)


# --- which endpoint


def chosen(meant: Meant) -> tuple[str | None, str]:
    """The id, if there is one, and the name of the endpoint that is meant.

    Raises:
        DeployError: one of them is empty.
    """
    if "" in {meant.endpoint_id, meant.name}:
        raise DeployError("--endpoint-id or --name is empty: is a variable of your shell not set?")
    if meant == Meant():
        return os.environ.get("RUNPOD_ENDPOINT_ID") or None, NAME
    return meant.endpoint_id, meant.name or NAME


def looked_up(rest: Rest, meant: Meant) -> Answer | None:
    """The endpoint that is meant; None: there is none of its name.

    Raises:
        DeployError: there is none of its id, or several have the name.
    """
    endpoint_id, name = chosen(meant)
    if endpoint_id:
        return rest.endpoint(endpoint_id)
    named = [one["id"] for one in rest.endpoints() if one["name"] == name]
    if len(named) > 1:
        raise DeployError(f"{name} is the name of {', '.join(named)}: say --endpoint-id")
    return rest.endpoint(named[0]) if named else None


def found(rest: Rest, meant: Meant) -> Answer:
    """As `looked_up`, where there must be one."""
    if there := looked_up(rest, meant):
        return there
    raise DeployError(
        f"there is no endpoint named {chosen(meant)[1]}: make one with `create`, or say --endpoint-id or --name"
    )


# --- commands


@command
def pools(said: Variables, *, as_json: Json = False) -> None:
    """Which pools of GPUs the model fits, what they cost, and which of them `create` takes."""
    env = bodies.SOME_BUCKET | {name: value for name, value in bodies.variables(said).items() if value}
    rows = gpu_pools.pools(bodies.settings_of(env))
    if as_json:
        show([vars(one) for one in rows])
        return
    print(f"{'':2}{'pool':<15}{'profile':<22}{'USD/s':<10}cards")
    for one in rows:
        price = "unknown" if one.usd_per_second is None else f"{one.usd_per_second:.5f}"
        profile = "/".join(one.profiles) if not one.problem else "does not fit"
        print(f"{'* ' if one.default else '  '}{one.id:<15}{profile or 'unknown':<22}{price:<10}{', '.join(one.cards)}")
    print(f"* is what `create` takes by itself. Prices are of a flex worker, as of {PRICES_AS_OF}.")


@command
def build(built: Built, named: ImageName, said: Variables, *, dry_run: DryRun = False) -> None:
    """Build the image. Of the worker's variables those count that say which models are baked."""
    do(build_command(built, bodies.image(named), bodies.variables(said)), dry_run=dry_run)


@command
def push(named: ImageName, *, engine: Annotated[Engine, Option(help="what pushes")] = Engine.DOCKER,
         dry_run: DryRun = False) -> None:  # fmt: skip
    """Bring the image to its registry."""
    do(push_command(engine, bodies.image(named)), dry_run=dry_run)


def do(made: list[str], *, dry_run: bool) -> None:
    """Run a command, or print it."""
    if dry_run:
        show({"command": made})
    else:
        run(made)


@command
def create(
    said: Said, *, name: Annotated[str, Option(help="of the endpoint")] = NAME, dry_run: DryRun = False
) -> None:  # fmt: skip
    """Make an endpoint of an image that is in a registry; prints it as JSON."""
    body = bodies.to_create(said, name)
    if dry_run:
        show(request(None, body))
        return
    rest = Rest(key())
    if there := looked_up(rest, Meant(name=name)):
        raise DeployError(f"there is an endpoint named {name} already, {there['id']}: `update` it, or say --name")
    make(rest, body)


def request(there: Answer | None, body: Answer) -> Answer:
    """One that is only printed: to make an endpoint, or to change it."""
    method, path = ("PATCH", path_of(there["id"])) if there else ("POST", "/v2/serverless")
    return {"method": method, "url": rest_url().rstrip("/") + path, "body": body}


def make(rest: Rest, body: Answer) -> None:
    """Make an endpoint, and say what comes next."""
    made = rest.create(body)
    show(made)
    tell(f"endpoint {made['id']} is there; now: python -m ops.deploy smoke --endpoint-id {made['id']}")


@command
def update(said: Said, meant: Meant, *, dry_run: DryRun = False) -> None:
    """Change what is said of an endpoint, and nothing else; prints it as JSON, and the difference for people.

    --dry-run asks RunPod how the endpoint is, and needs the key too.
    """
    rest = Rest(key())
    change(rest, found(rest, meant), said, dry_run=dry_run)


def change(rest: Rest, current: Answer, said: Said, *, dry_run: bool = False) -> None:
    """Bring an endpoint to what is said."""
    body = bodies.to_update(said, current)
    for line in bodies.changes(current, body):
        tell(str(line))
    if not body:
        tell("nothing changes: the endpoint is as you say. Workers keep an image whose name stays the same: --tag")
    if dry_run:
        show(request(current, body))
    else:
        show(rest.change(current["id"], body) if body else current)


@command
def up(
    built: Built,
    said: Said,
    meant: Meant,
    *,
    build_only: Annotated[bool, Option("--build-only", help="build, and no more")] = False,
    skip_build: Annotated[bool, Option("--skip-build", help="neither build nor push")] = False,
    dry_run: DryRun = False,
) -> None:
    """Build, push, and make the endpoint, or change it if there is one.

    Without a key, --dry-run takes the endpoint for a new one, unless its id is said.
    """
    if build_only and skip_build:
        raise DeployError("--build-only and --skip-build leave nothing to do: choose one")
    endpoint_id, name = chosen(meant)
    asks = not build_only and (not dry_run or endpoint_id or os.environ.get("RUNPOD_API_KEY"))
    rest = Rest(key()) if asks else None
    there = looked_up(rest, meant) if rest else None
    wanted = bodies.wanted(said, there)
    if built.bake_model:
        said = baked(built, said, wanted["env"])
    commands = []
    if not skip_build:
        image = bodies.image(said)
        # With a name for the image and its tag, the endpoint pulls what is pushed here.
        registry, image_name, tag = bodies.parts(image)
        said = replace(said, registry=registry, image_name=image_name, tag=tag)
        commands.append(build_command(built, image, wanted["env"], volume=bool(wanted.get("networkVolumes"))))
        if not build_only:
            commands.append(push_command(built.engine, image))
    steps: list[Any] = [{"command": one} for one in commands]
    if not build_only:
        # Also, what cannot be is told before anything long begins.
        body = bodies.to_update(said, there) if there else bodies.to_create(said, name)
        steps.append(request(there, body))
    if dry_run:
        show(steps)
        return
    for one in commands:
        run(one)
    if not rest:
        return
    # Building takes long: somebody may have made or changed it meanwhile.
    if there := looked_up(rest, meant):
        change(rest, there, said)
    else:
        make(rest, bodies.to_create(said, name))


def baked(built: Built, said: Said, variables: Mapping[str, str]) -> Said:
    """The options of workers, of these variables, that find their model in the image.

    Raises:
        DeployError: they would look for another one.
    """
    loaded = variables.get("MODEL_ID") or EDIT.id
    if built.model_id not in {None, loaded}:
        raise DeployError(f"{built.model_id} is baked, but workers load {loaded}: say --env MODEL_ID={built.model_id}")
    return replace(said, model_from=said.model_from or ModelFrom.IMAGE)


@command
def status(meant: Meant, *, as_json: Json = False) -> None:
    """The endpoint, its workers, releases and queue."""
    rest = Rest(key())
    endpoint = found(rest, meant)
    workers, releases = rest.workers(endpoint["id"]), rest.releases(endpoint["id"])
    health = Jobs(endpoint["id"], key()).health()
    if as_json:
        show({"endpoint": endpoint, **workers, **releases, "health": health})
        return
    scale, gpu = endpoint["workers"], endpoint.get("gpu") or {}
    print(f"{endpoint['name']} ({endpoint['id']}) runs {endpoint.get('image')} on {', '.join(gpu.get('pools', []))}")
    print(f"workers: {scale['min']} to {scale['max']}; timeout {endpoint['timeout'] / 1000:g} s; FlashBoot "
          f"{endpoint['flashboot']}")  # fmt: skip
    print("jobs: " + _counts(health.get("jobs") or {}))
    print("workers now: " + _counts(workers["summary"]))
    for one in workers["workers"]:
        stale = ", of an older release" if one["isStale"] else ""
        print(f"  {one['id']}: {one['status']} on {one.get('gpuTypeId')}, up {one.get('uptimeSeconds')} s{stale}")
    for one in releases["releases"][:5]:
        changed = ", ".join(entry["field"] for entry in one["diff"])
        print(f"release {one.get('version')} of {one['createdAt']}: {changed or 'as made'}")


def _counts(counted: Answer) -> str:
    return ", ".join(f"{count} {state}" for state, count in counted.items()) or "none"


@command
def smoke(
    meant: Meant,
    *,
    timeout: Annotated[float, Option(help="seconds for each edit, with the start of its worker", min=0.1)] = 1800,
    as_json: Json = False,
) -> None:
    """Do three edits on the endpoint, look at their results, and tell their times and costs."""
    rest = Rest(key())
    endpoint_id = chosen(meant)[0] or found(rest, meant)["id"]
    edits = smoke_test.smoke(Jobs(endpoint_id, key()), rest, endpoint_id, timeout, tell if as_json else print)
    if as_json:
        show(smoke_test.as_json(edits))
    tell(f"{len(edits)} edits are as they must be")


@command
def logs(
    meant: Meant,
    *,
    worker: Annotated[str | None, Option(help="id of one; default: all that run now")] = None,
    tail: Annotated[int, Option(help="lines of the past", min=0, max=5000)] = 100,
    follow: Annotated[bool, Option("--follow", help="go on until Ctrl-C")] = False,
) -> None:
    """What workers log: a line of JSON each, with the worker's id, the source and the time."""
    rest = Rest(key())
    endpoint_id = chosen(meant)[0] or found(rest, meant)["id"]
    ids = [worker] if worker else [one["id"] for one in rest.workers(endpoint_id)["workers"]]
    if not ids:
        raise DeployError("no worker is up: send a job, as `smoke` does, or say --workers-min 1 to `update`")

    def told(one: str) -> None:
        for event in Rest(key()).log(endpoint_id, one, tail, QUIET_S, follow=follow):
            # As JSON: a log line may have anything in it, also what a terminal obeys. With its end: others write too.
            print(json.dumps({"worker": one, **event}) + "\n", end="", flush=True)

    if follow:
        side_by_side(told, ids)
        return
    for one in ids:
        told(one)


def side_by_side(told: Callable[[str], None], ids: list[str]) -> None:
    """Follow several workers, until all of them have ended or Ctrl-C."""

    def followed(one: str) -> None:
        try:
            told(one)
        except DeployError as error:  # one that has ended
            tell(str(error))

    # Daemons: Ctrl-C waits for none of them.
    threads = [Thread(target=followed, args=(one,), daemon=True) for one in ids]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except KeyboardInterrupt:
        # At once: the interpreter's own end does not survive a daemon that is writing a line.
        os._exit(CTRL_C)


@command
def destroy(
    meant: Meant,
    *,
    yes: Annotated[bool, Option("--yes", help="do not ask")] = False,
    dry_run: DryRun = False,
) -> None:
    """Delete the endpoint, with its workers and its jobs. Images, secrets and network volumes stay."""
    if dry_run:
        endpoint_id, _ = chosen(meant)
        if not endpoint_id:
            raise DeployError("--dry-run asks nobody for the id of the endpoint: say --endpoint-id")
        show({"method": "DELETE", "url": rest_url().rstrip("/") + path_of(endpoint_id)})
        return
    rest = Rest(key())
    endpoint = found(rest, meant)
    question = f"Delete {endpoint['name']} ({endpoint['id']}) with its workers and all of its jobs?"
    if not yes and not typer.confirm(question, err=True):
        raise DeployError("nothing was deleted")
    rest.delete(endpoint["id"])
    kept = ", ".join(endpoint["networkVolumes"])
    tell(f"endpoint {endpoint['id']} is gone" + (f"; its network volume stays and is paid for: {kept}" if kept else ""))


if __name__ == "__main__":
    app(prog_name="python -m ops.deploy")
