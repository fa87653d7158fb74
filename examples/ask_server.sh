#!/bin/sh
# Asks a running server with curl: rankwise serve RUN, then sh examples/ask_server.sh [URL]
set -eu
url=${1:-http://127.0.0.1:8000}

ask() {
  curl --silent --show-error --fail-with-body --retry 5 --header 'Content-Type: application/json' \
    --header "Authorization: Bearer ${RANKWISE_TOKEN:-}" "$@"
  echo
}

ask "$url/v1/adapters"
ask "$url/v1/predict" --data '{"texts": "it broke on the second day"}'
ask "$url/v1/predict" --data '{"texts": ["just right", "never again"], "adapters": "all", "abstain_below": 0.6}'
ask "$url/v1/explain" --data '{"text": "it broke on the second day"}'
ask "$url/classify" --data '{"input": ["just right"]}'
ask "$url/predict" --data '{"inputs": [["just right"], ["never again"]]}'
