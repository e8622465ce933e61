"""A real Slurm of one node for tests: controller, node and job start as in a cluster, with four GPUs that are no GPUs.

As root on Debian or Ubuntu, without systemd and without cgroups. A Slurm that this machine already has is used as it is, and
never configured: only where no `slurm.conf` exists is one written.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

CONFIG = Path("/etc/slurm/slurm.conf")
MARK = "# written by the tests of cl_softcot\n"
GPUS = 4


def start() -> str | None:
    """Starts Slurm if it does not run; returns why that is impossible."""
    if _is_up():
        return None
    if os.geteuid() != 0:
        return "Slurm does not run here, and only root can start it"
    if CONFIG.exists() and not CONFIG.read_text().startswith(MARK):
        return "this machine has a Slurm of its own that does not answer"
    if not shutil.which("slurmctld"):
        if not shutil.which("apt-get"):
            return "Slurm is not installed (Debian packages: slurm-wlm, munge)"
        quiet = {
            "stdout": subprocess.DEVNULL,
            "stderr": subprocess.DEVNULL,
            "env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        }
        subprocess.run(["apt-get", "update", "-q"], **quiet)
        subprocess.run(["apt-get", "install", "-qy", "--no-install-recommends", "slurm-wlm", "munge"], **quiet)
        if not shutil.which("slurmctld"):
            return "Slurm could not be installed (apt-get install slurm-wlm munge)"
    try:
        _configure()
        atexit.register(_stop_daemons)
        _start_daemons()
    except (OSError, subprocess.SubprocessError) as error:
        return f"Slurm could not be started: {error}"
    for _ in range(120):
        if _is_up():
            return None
        time.sleep(0.5)
    return "Slurm was started and its node does not become idle (see /var/log/slurm)"


def _is_up() -> bool:
    if not shutil.which("sinfo"):
        return False
    try:
        done = subprocess.run(["sinfo", "--noheader", "--format=%t"], capture_output=True, text=True, timeout=10)
    except subprocess.TimeoutExpired:
        return False
    return any(state in done.stdout.split() for state in ("idle", "mix", "alloc"))


def _configure() -> None:
    host = socket.gethostname().split(".")[0]
    if subprocess.run(["getent", "hosts", host], capture_output=True).returncode:
        with open("/etc/hosts", "a") as hosts:
            hosts.write(f"127.0.0.1 {host}\n")
    for folder in ("/etc/slurm", "/var/spool/slurmctld", "/var/spool/slurmd", "/var/log/slurm", "/run/slurm", "/run/munge"):
        Path(folder).mkdir(parents=True, exist_ok=True)
    shutil.chown("/run/munge", "munge")
    for i in range(GPUS):  # null devices: Slurm refuses a GPU without a device
        if not Path(f"/dev/fakegpu{i}").exists():
            os.mknod(f"/dev/fakegpu{i}", 0o020666, os.makedev(1, 3))
    memory = int(Path("/proc/meminfo").read_text().split()[1]) // 1024 * 9 // 10
    settings = {
        "ClusterName": "tests", "SlurmctldHost": f"{host}(127.0.0.1)", "SlurmUser": "root", "SlurmdUser": "root",
        "AuthType": "auth/munge", "AuthInfo": "cred_expire=5",  # a requeued job waits so long
        "ProctrackType": "proctrack/linuxproc", "TaskPlugin": "task/none", "MpiDefault": "none",
        "SelectType": "select/cons_tres", "SelectTypeParameters": "CR_Core_Memory", "GresTypes": "gpu",
        "SchedulerType": "sched/backfill", "SchedulerParameters": "batch_sched_delay=1,sched_interval=5,bf_interval=5",
        "ReturnToService": "2", "JobRequeue": "1", "SlurmdParameters": "config_overrides", "KillWait": "5", "MinJobAge": "300",
        "InactiveLimit": "0", "StateSaveLocation": "/var/spool/slurmctld", "SlurmdSpoolDir": "/var/spool/slurmd",
        "SlurmctldPidFile": "/run/slurm/slurmctld.pid", "SlurmdPidFile": "/run/slurm/slurmd.pid",
        "SlurmctldLogFile": "/var/log/slurm/slurmctld.log", "SlurmdLogFile": "/var/log/slurm/slurmd.log",
        "AccountingStorageType": "accounting_storage/none", "JobAcctGatherType": "jobacct_gather/none",
        "PreemptType": "preempt/partition_prio", "PreemptMode": "REQUEUE", "SlurmctldParameters": "preempt_send_user_signal",
    }  # fmt: skip
    lines = [f"{key}={value}" for key, value in settings.items()] + [
        f"NodeName={host} NodeAddr=127.0.0.1 CoresPerSocket=8 RealMemory={memory} Gres=gpu:fake:{GPUS}",
        f"PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=5",
        f"PartitionName=high Nodes={host} Default=NO MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF",
    ]
    CONFIG.write_text(MARK + "\n".join(lines) + "\n")
    Path("/etc/slurm/gres.conf").write_text(f"Name=gpu Type=fake File=/dev/fakegpu[0-{GPUS - 1}]\n")
    key = Path("/etc/munge/munge.key")
    if not key.exists() or not key.stat().st_size:
        key.parent.mkdir(parents=True, exist_ok=True)
        key.write_bytes(os.urandom(1024))
        shutil.chown(key, "munge")
        key.chmod(0o400)


def _start_daemons() -> None:
    quiet = {
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.DEVNULL,
        "stdin": subprocess.DEVNULL,
        "timeout": 60,
        "check": True,
    }
    if not _lives("/run/munge/munged.pid"):
        subprocess.run(["runuser", "-u", "munge", "--", "munged"], **quiet)
    if not _lives("/run/slurm/slurmctld.pid"):
        subprocess.run(["slurmctld"], **quiet)
    if not _lives("/run/slurm/slurmd.pid"):
        subprocess.run(["slurmd"], **quiet)


def _stop_daemons() -> None:
    """What these tests started does not stay behind."""
    for pid_file in ("/run/slurm/slurmd.pid", "/run/slurm/slurmctld.pid", "/run/munge/munged.pid"):
        if _lives(pid_file):
            os.kill(int(Path(pid_file).read_text()), signal.SIGTERM)


def _lives(pid_file: str) -> bool:
    try:
        os.kill(int(Path(pid_file).read_text()), 0)
    except (OSError, ValueError):
        return False
    return True


def squeue() -> dict[str, str]:
    """State by job."""
    done = subprocess.run(["squeue", "--noheader", "--array", "--format=%i %T"], capture_output=True, text=True, timeout=30)
    return dict(line.split(maxsplit=1) for line in done.stdout.splitlines())


def cancel_all() -> None:
    jobs = list(squeue())
    if jobs:
        subprocess.run(["scancel", "--full", *jobs], capture_output=True, timeout=30)
