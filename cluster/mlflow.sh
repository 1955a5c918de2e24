#!/bin/sh
# Start or stop the tracking server on the head of a cluster.
#
#   mlflow.sh start HOST ARTIFACTS    returns when the server answers; does nothing if one answers at HOST:5000 already
#   mlflow.sh stop
#
# HOST is the only address that the server listens on. ARTIFACTS is a folder or a URI; models are uploaded through the
# server, so the workers need no rights to it. MLflow answers only requests to HOST and to a forwarded localhost. State
# and log are in ~/mlflow.
set -eu
state="$HOME/mlflow"
answers() { python3 -c "import sys, urllib.request as r; r.urlopen(sys.argv[1], timeout=5)" "http://$1:5000/health" 2>/dev/null; }

case "$1" in
start)
    if answers "$2"; then exit 0; fi
    mkdir -p "$state"
    MLFLOW_TRACKING_URI= setsid nohup mlflow server --host "$2" --port 5000 --workers 1 \
        --allowed-hosts "$2:*,localhost:*,127.0.0.1:*" \
        --backend-store-uri "sqlite:///$state/mlflow.db" --artifacts-destination "$3" \
        >"$state/log" 2>&1 </dev/null &
    echo $! >"$state/pid"
    for _ in $(seq 60); do
        if answers "$2"; then exit 0; fi
        sleep 1
    done
    echo "mlflow.sh: no answer from $2:5000 after a minute; see $state/log" >&2
    exit 1
    ;;
stop)
    if [ -e "$state/pid" ]; then
        kill -- "-$(cat "$state/pid")" 2>/dev/null || true
        rm "$state/pid"
    fi
    ;;
*)
    echo "usage: mlflow.sh start HOST ARTIFACTS | stop" >&2
    exit 2
    ;;
esac
