#!/usr/bin/env python3
"""Edit a picture: `python edit.py IMAGE_URL PROMPT FILE`.

Needs `pip install runpod`, and RUNPOD_API_KEY and RUNPOD_ENDPOINT_ID in the environment.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import requests
import runpod

TIME_LIMIT_S = float(os.environ.get("TIME_LIMIT_S", "1800"))  # a first job waits for a worker that loads its model
UNSURE = {429, 500, 502, 503, 504}  # of RunPod's API: worth asking again


def edit(endpoint: runpod.Endpoint, image_url: str, prompt: str) -> Any:
    """Submit a job, wait for its end, and return its output. Ends the program if there is none."""
    job = endpoint.run({"input": {"image_url": image_url, "prompt": prompt}})
    end, pause_s, told = time.monotonic() + TIME_LIMIT_S, 0.5, None
    while time.monotonic() < end:
        try:
            # job.output() and endpoint.run_sync() give None for a job that failed; its error is only in here.
            state = endpoint.rp_client.get(f"{endpoint.endpoint_id}/status/{job.job_id}")
        except requests.HTTPError as error:
            if error.response.status_code not in UNSURE:
                sys.exit(f"job {job.job_id} cannot be asked for: {error}. After 30 minutes RunPod forgets a job.")
            state = {"status": f"HTTP {error.response.status_code}"}
        except requests.RequestException as error:
            state = {"status": type(error).__name__}
        match state["status"]:
            case "COMPLETED":
                return state.get("output")
            case "FAILED":
                sys.exit(in_words(state.get("error")))
            case "CANCELLED" | "TIMED_OUT":
                sys.exit(f"job {job.job_id} is {state['status']}")
        if (news := f"{state['status']} {json.dumps(state.get('output', ''))}") != told:
            print(news, file=sys.stderr)
            told = news
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, 10)
    try:
        job.cancel()
        end_of_it = "was cancelled"
    except (requests.RequestException, RuntimeError):
        end_of_it = "could not be cancelled: it goes on, and is paid for"
    sys.exit(f"job {job.job_id} took longer than {TIME_LIMIT_S:g} s and {end_of_it}")


def in_words(error: Any) -> str:
    """What a failed job's error says, and what to do. It is JSON text, or RunPod's own words."""
    try:
        said = json.loads(error)
        kind, message, again = said["type"], said["message"], said["details"]["retryable"]
    except (TypeError, ValueError, KeyError):
        return f"FAILED: {error}"
    return f"{kind}: {message}\n" + ("Run this again." if again else "The same request would fail again.")


def save(link: str, file: Path) -> None:
    """Download a presigned link. It is all that is needed: the API key is for RunPod alone."""
    try:
        picture = requests.get(link, timeout=60)
    except requests.RequestException as error:
        sys.exit(f"the link does not open: {type(error).__name__}")
    if not picture.ok:
        sys.exit(f"the link does not open: HTTP {picture.status_code}")
    file.write_bytes(picture.content)


def main() -> None:
    """Do it."""
    if len(sys.argv) != 4 or not (os.environ.get("RUNPOD_API_KEY") and os.environ.get("RUNPOD_ENDPOINT_ID")):
        sys.exit(__doc__)
    image_url, prompt, file = sys.argv[1:]
    endpoint = runpod.Endpoint(os.environ["RUNPOD_ENDPOINT_ID"], api_key=os.environ["RUNPOD_API_KEY"])
    try:
        output = edit(endpoint, image_url, prompt)
    except (requests.RequestException, RuntimeError) as error:  # the second is how the SDK tells of a wrong key
        sys.exit(f"RunPod did not take the job: {error}")
    try:
        link, seed = output["result"]["presigned_url"], output["result"]["meta"]["seed"]
    except (TypeError, KeyError):
        sys.exit("there is no picture in the answer: does RUNPOD_ENDPOINT_ID name an endpoint of this worker?")
    save(link, Path(file))
    print(f"{file}: seed {seed}")


if __name__ == "__main__":
    main()
