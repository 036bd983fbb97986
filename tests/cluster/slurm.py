"""A throw-away Slurm on the hosts of sandbox.py: no systemd, cgroups, munge or database."""

import subprocess
import time
from pathlib import Path

from sandbox import Host, wait_for

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
# A requeued job waits this long; two minutes by default, and with less than five seconds.
AuthInfo=cred_expire=5
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool.%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.%n.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
# The nodes claim more processors than the machine has.
SlurmdParameters=config_overrides
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0,default_queue_depth=100
KillWait=5
MinJobAge=300
SlurmdTimeout=20
{nodes}"""


class Slurm:
    def __init__(self, hosts: list[Host], directory: Path, cpus: int, partitions: dict[str, list[Host]]):
        """Jobs that name no partition run in the first."""
        self.hosts, self.directory = hosts, directory
        (directory / "state").mkdir(parents=True)
        nodes = "".join(f"NodeName={host.name} NodeAddr={host.address} CPUs={cpus} RealMemory=1000\n" for host in hosts)
        for number, (name, members) in enumerate(partitions.items()):
            nodes += (f"PartitionName={name} Nodes={','.join(host.name for host in members)} "
                      f"Default={'NO' if number else 'YES'} MaxTime=60 State=UP\n")
        self.configuration = directory / "slurm.conf"
        self.configuration.write_text(CONFIGURATION.format(controller=hosts[0].name, directory=directory, nodes=nodes))
        # Each host has a /dev/shm of its own, as different machines have.
        (directory / "mpi.conf").write_text("PMIxCliTmpDirBase=/dev/shm\n")
        (directory / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")  # not used, but looked for
        self.daemon(hosts[0], "slurmctld", "-c")
        for host in hosts:
            (directory / f"spool.{host.name}").mkdir()
            self.start_daemon(host)
        wait_for(lambda: len(set(self("sinfo", "-h", "-N", "-t", "idle", "-o", "%N").stdout.split())) == len(hosts),
                 f"idle nodes; logs in {directory}")

    def environment(self) -> list[str]:
        return ["env", f"SLURM_CONF={self.configuration}"]

    def daemon(self, host: Host, *command) -> None:
        host.run(*self.environment(), *command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def start_daemon(self, host: Host) -> None:
        self.daemon(host, "slurmd", "-N", host.name)

    def command(self, *arguments) -> list[str]:
        return self.hosts[0].command(*self.environment(), *arguments)

    def __call__(self, *arguments, **options) -> subprocess.CompletedProcess:
        return subprocess.run(self.command(*arguments), capture_output=True, text=True, timeout=120, **options)

    def submit(self, *arguments, **options) -> str:
        """The job's number."""
        result = self("sbatch", "--parsable", *arguments, **options)
        if result.returncode != 0:
            raise RuntimeError(result.stderr)
        return result.stdout.strip()

    def state(self, job: str) -> str:
        return self("squeue", "-h", "-j", job, "-t", "all", "-o", "%T").stdout.strip()

    def wait_for_end(self, jobs: list[str], timeout: float = 120) -> None:
        ended = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}
        deadline = time.monotonic() + timeout
        while not all(set(self.state(job).split()) <= ended for job in jobs):
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited for jobs: {self('squeue', '-t', 'all').stdout}")
            time.sleep(0.2)

    def stop(self) -> None:
        """What lives on the hosts afterwards `stop_hosts` ends: the daemons and their jobs."""
        self("scancel", "--user=root")
