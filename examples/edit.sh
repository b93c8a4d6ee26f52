#!/usr/bin/env bash
# Edit a picture: edit.sh IMAGE_URL PROMPT FILE
# Needs curl and jq, and RUNPOD_API_KEY and RUNPOD_ENDPOINT_ID in the environment.
set -euo pipefail

if [[ $# -ne 3 || -z ${RUNPOD_API_KEY:-} || -z ${RUNPOD_ENDPOINT_ID:-} ]]; then
  sed -n '2,3s/^# //p' "$0" >&2
  exit 1
fi
endpoint="${RUNPOD_ENDPOINT_BASE_URL:-https://api.runpod.ai/v2}/$RUNPOD_ENDPOINT_ID"
limit_s="${TIME_LIMIT_S:-1800}" # a first job waits for a worker that loads its model

# The key goes in by a file, not by the command line, which every user of this machine can read.
api() {
  curl --silent --show-error --fail --max-time 30 \
    --config <(echo "header = \"Authorization: Bearer $RUNPOD_API_KEY\"") "$@"
}

job=$(jq --null-input --arg url "$1" --arg prompt "$2" '{input: {image_url: $url, prompt: $prompt}}' |
  api "$endpoint/run" --header 'Content-Type: application/json' --data @- | jq --raw-output .id)

pause_s=1
told=
while :; do
  # What fails by bad luck is tried again. A job that is not known (any more) is not.
  if ! state=$(api "$endpoint/status/$job" --retry 5 --retry-connrefused); then
    echo "job $job cannot be asked for. After 30 minutes RunPod forgets a job." >&2
    exit 1
  fi
  status=$(jq --raw-output .status <<<"$state")
  case $status in
    COMPLETED) break ;;
    FAILED)
      # The error is JSON text, or RunPod's own words.
      jq --raw-output '.error as $said | try ($said | fromjson | "\(.type // error): \(.message)\n" +
        if .details.retryable then "Run this again." else "The same request would fail again." end)
        catch "FAILED: \($said)"' <<<"$state" >&2
      exit 1
      ;;
    CANCELLED | TIMED_OUT)
      echo "job $job is $status" >&2
      exit 1
      ;;
  esac
  if ((SECONDS >= limit_s)); then
    end_of_it='was cancelled'
    api --request POST "$endpoint/cancel/$job" &>/dev/null ||
      end_of_it='could not be cancelled: it goes on, and is paid for'
    echo "job $job took longer than $limit_s s and $end_of_it" >&2
    exit 1
  fi
  news=$(jq --raw-output '"\(.status) \(.output // "")"' <<<"$state")
  [[ $news == "$told" ]] || echo "$news" >&2
  told=$news
  sleep "$pause_s"
  pause_s=$((pause_s < 8 ? pause_s * 2 : 10))
done

link=$(jq --raw-output '(.output.result.presigned_url | strings)? // empty' <<<"$state")
if [[ -z $link ]]; then
  echo "there is no picture in the answer: does RUNPOD_ENDPOINT_ID name an endpoint of this worker?" >&2
  exit 1
fi
# The link is all that is needed: the API key is for RunPod alone.
curl --silent --show-error --fail --max-time 60 --output "$3" "$link"
jq --raw-output --arg file "$3" '"\($file): seed \(.output.result.meta.seed)"' <<<"$state"
