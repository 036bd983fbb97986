"""Hosts on one machine: network, UTS, IPC and mount namespaces on a bridge, real TCP between them.

A test program calls `enter()` first. It then runs again as process 1 of a PID namespace of its own, without any other
network: when it ends, however it ends, the kernel ends every process and removes every host that it made.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

INSIDE = "TTT_CLUSTER_SANDBOX"
NAMESPACES = ("--net", "--uts", "--mount", "--ipc")
SUBNET = "10.98.0"
SKIPPED = 77  # tests/CMakeLists.txt


def enter() -> None:
    if os.environ.get(INSIDE):
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        return
    probe = subprocess.run(["unshare", "--pid", "--fork", "--mount-proc", *NAMESPACES, "true"], capture_output=True,
                           text=True)
    if probe.returncode != 0:
        # In the form that tests/run.sh looks for: only skips that tests/README.md allows pass.
        name = "cluster_" + Path(sys.argv[0]).stem.removesuffix("_test")
        print(f"[  SKIPPED ] {name} (this machine makes no namespaces: {probe.stderr.strip()})")
        sys.exit(SKIPPED)
    os.environ[INSIDE] = "1"
    os.execvp("unshare", ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *NAMESPACES, sys.executable,
                          "-B", *sys.argv])


class Host:
    """A process that does nothing keeps the namespaces."""

    def __init__(self, name: str, address: str, directory: Path):
        self.name, self.address = name, address
        self.keeper = subprocess.Popen(["unshare", *NAMESPACES, "sh", "-c",
                                        f"hostname {name} && mount --bind {directory}/hosts /etc/hosts && "
                                        "mount -t tmpfs tmpfs /dev/shm && ip link set lo up && touch "
                                        f"{directory}/{name}.up && exec sleep infinity"])
        (directory / f"{name}.pid").write_text(str(self.keeper.pid))

    def command(self, *arguments) -> list[str]:
        return ["nsenter", "--target", str(self.keeper.pid), *NAMESPACES, "--wd=.", *map(str, arguments)]

    def run(self, *arguments, **options) -> subprocess.CompletedProcess:
        return subprocess.run(self.command(*arguments), check=True, **options)

    def processes(self) -> dict[int, str]:
        """Process id -> command line of what lives on the host, its keeper left out."""
        found = {}
        mine = os.readlink(f"/proc/{self.keeper.pid}/ns/net")
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == self.keeper.pid:
                continue
            try:
                if os.readlink(entry / "ns/net") == mine:
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    if command:  # a zombie has none
                        found[int(entry.name)] = command
            except OSError:
                continue  # it ended meanwhile
        return found

    def rank_processes(self, run: Path) -> dict[int, int]:
        """Rank -> process id of the ranks on the host that write to the directory `run`."""
        found = {}
        for process, command in self.processes().items():
            if f"output_directory={run} " not in command:
                continue
            try:
                variables = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
                program = os.readlink(f"/proc/{process}/exe")
            except OSError:
                continue
            values = dict(variable.partition(b"=")[::2] for variable in variables)
            if Path(program).name == "ttt" and b"PMIX_RANK" in values:
                found[int(values[b"PMIX_RANK"])] = process
        return found

    def cut_off(self) -> None:
        self.run("ip", "link", "set", "veth0", "down")

    def connect(self) -> None:
        self.run("ip", "link", "set", "veth0", "up")


def make_hosts(directory: Path, count: int) -> list[Host]:
    """Hosts node1, node2, ... that know each other's names; `directory`/agent HOST COMMAND runs a command on one."""
    directory.mkdir()
    names = [f"node{i}" for i in range(1, count + 1)]
    addresses = [f"{SUBNET}.{i}" for i in range(1, count + 1)]
    (directory / "hosts").write_text("127.0.0.1 localhost\n" +
                                     "".join(f"{address} {name}\n" for address, name in zip(addresses, names)))
    agent = directory / "agent"
    agent.write_text(f'#!/bin/sh\nhost=$1; shift\nexec nsenter --target "$(cat {directory}/$host.pid)" '
                     f'{" ".join(NAMESPACES)} --wd=. sh -c "$*"\n')
    agent.chmod(0o755)
    subprocess.run(["ip", "link", "add", "bridge0", "type", "bridge"], check=True)
    subprocess.run(["ip", "link", "set", "bridge0", "up"], check=True)
    hosts = [Host(name, address, directory) for name, address in zip(names, addresses)]
    for number, host in enumerate(hosts):
        wait_for(lambda: (directory / f"{host.name}.up").exists(), f"{host.name} to start")
        subprocess.run(["ip", "link", "add", f"port{number}", "type", "veth", "peer", "name", "veth0", "netns",
                        str(host.keeper.pid)], check=True)
        subprocess.run(["ip", "link", "set", f"port{number}", "master", "bridge0", "up"], check=True)
        host.run("ip", "address", "add", f"{host.address}/24", "dev", "veth0")
        host.connect()
    return hosts


def stop_hosts(hosts: list[Host]) -> None:
    for host in hosts:
        for process in host.processes():
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                pass
        host.keeper.kill()
        host.keeper.wait()
    subprocess.run(["ip", "link", "delete", "bridge0"], check=True)


def wait_for(condition, what: str, timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout} s for {what}")
        time.sleep(0.02)
