"""Test of cluster/on_premises.yaml on three hosts that are simulated on this machine.

The second half of `make cluster-test`. A host is a set of Linux namespaces (network, processes, mounts, name) with an
sshd, its own /tmp, home and /dev/shm, and an address on a bridge. The hosts share one folder. `ray up` installs the
project on them with the commands of the file. Libraries are not downloaded again: the environment of this Python is the
read-only lower layer of each host's environment. Every step has a limit of time, see `steps.py`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import yaml
from mlflow.entities.model_registry import ModelVersion
from mlflow.tracking import MlflowClient
from steps import Step, processes_of, run, wait

ROOT = Path(__file__).parent.parent
NET = "10.98.76"
BRIDGE = "agman0"
DASHBOARD = 18265
SETTINGS = "backbone=resnet18 embedding_dim=16 batch_size=12 threads=1 precision=fp32 checkpoint_every=5 seed=11"
EPOCHS, STEPS_AN_EPOCH = 4, 20
STEPS = EPOCHS * STEPS_AN_EPOCH
TOOLS = ["ip", "nsenter", "unshare", "sshd", "ssh", "ssh-keygen", "rsync"]
UNSHARE = ["unshare", "--net", "--pid", "--mount", "--uts", "--fork"]

# First process of a host: mounts the file systems, starts sshd, and collects orphaned processes. The environment and
# its Python may lie below folders that each host has for itself: both are kept in /run, and mounted again in place.
BOOT = """
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs $WORK/layer-$NAME
mkdir $WORK/layer-$NAME/upper $WORK/layer-$NAME/work
mount -t tmpfs tmpfs /run
mkdir -p /run/sshd /run/venv /run/python
mount -t overlay overlay -o lowerdir=$VENV,upperdir=$WORK/layer-$NAME/upper,workdir=$WORK/layer-$NAME/work /run/venv
mount --bind $PYTHON /run/python
mount --bind $WORK/passwd /etc/passwd
mount --bind $WORK/hosts /etc/hosts
for folder in /home /srv /dev/shm; do mount -t tmpfs tmpfs $folder; done
mkdir -p /srv/agman /home/agman/.ssh /home/agman/.config/pip
mount --bind $WORK/shared /srv/agman
cp $WORK/key.pub /home/agman/.ssh/authorized_keys
printf '[global]\\nno-index = true\\nfind-links = /srv/agman/wheels\\n' > /home/agman/.config/pip/pip.conf
echo 'export PATH="'$VENV'/bin:$PATH" RAY_USAGE_STATS_ENABLED=0' > /home/agman/.bashrc
mkdir /home/agman/agman-venv
mount --bind /run/venv /home/agman/agman-venv
cp $WORK/key /run/hostkey
hostname $NAME
while ! ip -4 addr show dev eth0 2>/dev/null | grep -q inet; do sleep 0.1; done
SSHD=$(command -v sshd)
mount -t tmpfs tmpfs /tmp
mkdir -p $PYTHON $VENV
mount --bind /run/python $PYTHON
mount --bind /run/venv $VENV
cd /
env -i PATH="$PATH" $SSHD -D -f /dev/null -h /run/hostkey -o PidFile=none -o StrictModes=no &
set +e
while :; do sleep 1000 & wait; done
"""


@dataclass
class Host:
    name: str
    address: str
    launcher: subprocess.Popen[bytes]
    init: int

    def processes(self, *named: str) -> list[str]:
        """Return the command lines on this host that contain one of the words `named`."""
        space = Path(f"/proc/{self.init}/ns/pid").readlink()
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if (process / "ns/pid").readlink() == space:
                    found.append((process / "cmdline").read_text().replace("\0", " "))
        return [line for line in found if any(word in line for word in named)]

    def cut_power(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.init, signal.SIGKILL)  # the end of a namespace's first process ends all others
        self.launcher.wait(60)


def why_not() -> str | None:
    """Return why the test cannot run here; None if it can."""
    if os.geteuid():
        return "network namespaces need root"
    if missing := [tool for tool in TOOLS if not shutil.which(tool)]:
        return f"not installed: {', '.join(missing)} (Debian: openssh-server, openssh-client, rsync, iproute2)"
    if subprocess.run([*UNSHARE, "true"], check=False, capture_output=True).returncode:
        return "namespaces are not permitted here"
    return None


@contextmanager
def hosts(work: Path) -> Iterator[list[Host]]:
    """Run the head and two more hosts during the block, reachable from this machine."""
    names = ["agman-head", "agman-one", "agman-two"]
    passwd = [line.split(":") for line in Path("/etc/passwd").read_text().splitlines()]
    lines = [":".join([*f[:5], "/home/agman", "/bin/bash"] if f[0] == "root" else f) for f in passwd]
    (work / "passwd").write_text("\n".join(lines) + "\n")
    addresses = [f"{NET}.{10 + i}" for i in range(len(names))]
    known = "".join(f"{address} {name}\n" for address, name in zip(addresses, names, strict=True))
    (work / "hosts").write_text(f"127.0.0.1 localhost\n{known}")
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", work / "key")
    started: list[Host] = []
    try:
        run("ip", "link", "add", BRIDGE, "type", "bridge")
        run("ip", "addr", "add", f"{NET}.1/24", "dev", BRIDGE)
        run("ip", "link", "set", BRIDGE, "up")
        for i, (name, address) in enumerate(zip(names, addresses, strict=True)):
            started.append(_host(work, name, address, f"{BRIDGE}v{i}"))
        yield started
    finally:
        for host in started:
            host.cut_power()
        subprocess.run(["ip", "link", "del", BRIDGE], check=False, capture_output=True)


def _host(work: Path, name: str, address: str, link: str) -> Host:
    (work / f"layer-{name}").mkdir()
    variables = os.environ | {"WORK": str(work), "NAME": name, "VENV": sys.prefix, "PYTHON": sys.base_prefix}
    words = [*UNSHARE, "--mount-proc", "--kill-child", "bash", "-c", BOOT]
    with (work / f"{name}.log").open("w") as log:
        launcher = subprocess.Popen(words, env=variables, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children")
    wait(f"{name} begins", lambda: children.read_text().strip(), 10, (work / f"{name}.log").read_text)
    host = Host(name, address, launcher, int(children.read_text()))
    run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", host.init)
    run("ip", "link", "set", link, "master", BRIDGE, "up")
    inside = ["nsenter", "-t", host.init, "-n", "ip"]
    for words in (["link", "set", "lo", "up"], ["link", "set", "eth0", "up"]):
        run(*inside, *words)
    run(*inside, "addr", "add", f"{address}/24", "dev", "eth0")
    run(*inside, "route", "add", "default", "via", f"{NET}.1")
    wait(f"{name} has an sshd", lambda: host.processes("sshd"), 60, (work / f"{name}.log").read_text)
    return host


class Operator:
    """User on another machine with the cluster file, the key, the token, and a forwarded dashboard."""

    def __init__(self, work: Path, head: Host, workers: list[Host]):
        self.work = work
        self.home = work / "operator"
        self.home.mkdir()
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_"))}
        program = str(Path(sys.executable).parent)
        self.variables = kept | {
            "HOME": str(self.home),
            "PATH": f"{program}:{kept['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_TMPDIR": str(self.home),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        config = yaml.safe_load((ROOT / "cluster/on_premises.yaml").read_text())
        config["provider"] |= {"head_ip": head.address, "worker_ips": [worker.address for worker in workers]}
        config["auth"] = {"ssh_user": "root", "ssh_private_key": str(work / "key")}
        config["file_mounts"] = {
            "~/agman-pipeline": str(ROOT),
            "~/.ray/auth_token": str(self.home / ".ray/auth_token"),
        }
        self.file = work / "cluster.yaml"
        self.file.write_text(yaml.safe_dump(config))
        self.ray("get-auth-token", "--generate")

    def ray(self, *words: object, seconds: float = 300) -> str:
        return run("ray", *words, seconds=seconds, env=self.variables, cwd=ROOT)

    @contextmanager
    def dashboard(self) -> Iterator[None]:
        known = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
        words = ["ssh", "-N", *known, "-o", "ExitOnForwardFailure=yes", "-i", str(self.work / "key")]
        head = yaml.safe_load(self.file.read_text())["provider"]["head_ip"]
        with Step(*words, "-L", f"{DASHBOARD}:127.0.0.1:8265", f"root@{head}") as tunnel:
            time.sleep(2)
            if tunnel.ended:
                raise tunnel.failure("ended")
            yield

    def job(self, command: str) -> Step:
        words = ["agman", "submit", "--address", f"http://127.0.0.1:{DASHBOARD}", "--", *command.split()[1:]]
        return Step(*words, env=self.variables, cwd=self.home)

    def done(self, command: str, seconds: float = 600) -> float:
        begun = time.monotonic()
        with self.job(command) as job:
            job.finish(seconds)
        return time.monotonic() - begun


def say(what: str, seconds: float | None = None) -> None:
    print(f"{what}: {seconds:.0f} s" if seconds is not None else what, flush=True)


def use_a_cluster(work: Path) -> None:
    (work / "shared").mkdir()
    run(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", work / "shared/wheels", "setuptools>=77")
    with hosts(work) as (head, one, two):
        operator = Operator(work, head, [one, two])
        begun = time.monotonic()
        # --verbose names each command on the head.
        operator.ray("up", "--yes", "--no-config-cache", "--verbose", operator.file, seconds=600)
        say("ray up, the head ready", time.monotonic() - begun)
        log = "tail -n 50 /tmp/ray/session_latest/logs/monitor.*"  # has the commands on the workers
        wait(
            "all three hosts run Ray",
            lambda: all(host.processes("raylet/raylet") for host in (head, one, two)),
            240,
            lambda: operator.ray("exec", operator.file, log),
        )
        say("all three hosts in the cluster", time.monotonic() - begun)
        with operator.dashboard():
            _jobs(operator, head, [one, two])
        operator.ray("exec", operator.file, "sh ~/agman-pipeline/cluster/mlflow.sh stop")
        operator.ray("down", "--yes", operator.file)
        alive = [host for host in (head, one, two) if host.launcher.poll() is None]

        def left() -> list[str]:
            return [f"{host.name}: {line}" for host in alive for line in host.processes("ray", "mlflow")]

        took = wait("ray down, the end of its processes", lambda: not left(), 180, lambda: "\n".join(left()))
        say("ray down, until none of its processes runs on any host", took)


def check_all_ended(work: Path) -> None:
    """Check that no process and no network device of the test is left on this machine."""

    def left() -> list[str]:
        return [*processes_of(work), *(f"device {one.name}" for one in Path("/sys/class/net").glob(f"{BRIDGE}*"))]

    say("until nothing is left", wait("the end of all that began", lambda: not left(), 60, lambda: "\n".join(left())))


def _jobs(operator: Operator, head: Host, workers: list[Host]) -> None:
    shared = operator.work / "shared"
    folder = "/srv/agman"
    say("agman sample", operator.done(f"agman sample fashionai --images 1600 --size 32 --out {folder}/drawn"))
    prep = f"agman prep fashionai --root {folder}/drawn --out {folder}/data --name hosts --image-size 32"
    say("agman prep", operator.done(f"{prep} --triplets {12 * STEPS_AN_EPOCH} --epochs 2"))
    train = f"agman train --data {folder}/data --storage {folder}/runs --workers 2 {SETTINGS} epochs={EPOCHS}"
    begun = time.monotonic()
    with operator.job(train) as job:
        _lose_a_host(job, shared, head, workers)
        job.finish(600)
    say("agman train, all of it", time.monotonic() - begun)
    _check(head)
    tune = f"agman tune --data {folder}/data --storage {folder}/runs --name search --space margins --trials 2"
    say("agman tune", operator.done(f"{tune} --concurrent 1 --final-seeds 1 {SETTINGS} epochs=1"))
    (_, second) = _versions(head)
    assert second.tags["search"] == "search" and second.aliases == ["challenger"], second
    say("MLflow: the study's model is registered as challenger")


def _lose_a_host(job: Step, shared: Path, head: Host, workers: list[Host]) -> None:
    """Cut the power of a host that trains, and wait until the training has gone on."""

    def saved() -> int:
        checkpoints = shared.glob("runs/*/checkpoints/*/checkpoint.json")
        return max((json.loads(path.read_text())["step"] for path in checkpoints), default=0)

    say("until a checkpoint", wait("a checkpoint", lambda: job.ended or saved(), 300, job.printed))
    if job.ended:
        raise job.failure("ended before a host was lost")
    per_host = {host.name: len(host.processes("ray::RayTrainWorker")) for host in (head, *workers)}
    say(f"training workers per host: {per_host}")
    lost = next(host for host in workers if per_host[host.name])
    before = saved()
    lost.cut_power()
    say(f"{lost.name} has lost its power; saved at step {before}")
    took = wait("a checkpoint after the loss", lambda: job.ended or saved() > before, 300, job.printed)
    say("until a checkpoint of a later step", took)


def _check(head: Host) -> None:
    """Check that there is one finished run with every step once, and one registered model."""
    client = MlflowClient(f"http://{head.address}:5000")
    (experiment,) = [one for one in client.search_experiments() if one.name == "hosts"]
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED", found.info.status
    epochs = [point.step for point in client.get_metric_history(found.info.run_id, "valid/map")]
    assert epochs == [STEPS_AN_EPOCH * (i + 1) for i in range(EPOCHS)], epochs
    assert len(_versions(head)) == 1
    say(f"MLflow: one run, FINISHED, epochs end at steps {epochs}; one registered model")


def _versions(head: Host) -> list[ModelVersion]:
    client = MlflowClient(f"http://{head.address}:5000")
    found = client.search_model_versions("name='agman-hosts'")
    return [client.get_model_version(one.name, one.version) for one in sorted(found, key=lambda one: int(one.version))]


def main() -> None:
    if reason := why_not():
        print(f"cluster-test skipped: {reason}")
        return
    os.environ |= {"MLFLOW_HTTP_REQUEST_TIMEOUT": "20", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
    with tempfile.TemporaryDirectory(prefix="agman-hosts-", dir="/var/tmp") as name:
        work = Path(name)
        try:
            use_a_cluster(work)
        except BaseException:
            for log in sorted(work.glob("*.log")):
                print(f"--- {log.name}\n{log.read_text()[-8000:]}", file=sys.stderr)
            raise
        finally:
            check_all_ended(work)


if __name__ == "__main__":
    main()
