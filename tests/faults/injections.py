"""Injects faults into running containers, from outside: each is a context manager that undoes it.

None waits until the stack is healthy again: that time is measured by the row.
"""

import base64
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from python_on_whales import Container

from faults import malformed
from stack import inside as run
from stack.poll import poll_until
from stack.stack import Stack

if TYPE_CHECKING:
    from faults.arena import Arena

Injection = Callable[["Arena"], AbstractContextManager[None]]


# --- Processes ---


def send_to_program(stack: Stack, container: Container, number: int) -> None:
    """Send a signal to the program that the container's init has started."""
    children = "open('/proc/1/task/1/children').read().split()"
    program = f"import os; os.kill(int({children}[0]), {number:d})"
    stack.docker.container.execute(container, ["python3", "-c", program])


@contextmanager
def killed(arena: "Arena", *services: str) -> Iterator[None]:
    """All containers of services killed at once; the engine restarts them."""
    arena.stack.crash(*services)
    yield


@contextmanager
def one_killed(arena: "Arena", service: str) -> Iterator[None]:
    """One container of a service killed; the others continue."""
    arena.stack.send_signal(signal.SIGKILL, arena.stack.containers(service)[0])
    yield


@contextmanager
def frozen(arena: "Arena", *services: str) -> Iterator[None]:
    """All processes of services frozen."""
    try:
        arena.stack.compose.pause(list(services))
        yield
    finally:
        for container in (each for service in services for each in arena.stack.containers(service)):
            if container.state.paused:
                container.unpause()


@contextmanager
def stopped(arena: "Arena", *services: str) -> Iterator[None]:
    """Services stopped, and started again."""
    try:
        arena.stack.compose.stop(list(services))
        yield
    finally:
        arena.stack.compose.start(list(services))


@contextmanager
def restarted(arena: "Arena", *services: str) -> Iterator[None]:
    """Services restarted."""
    arena.stack.compose.restart(list(services))
    yield


@contextmanager
def children_killed(arena: "Arena") -> Iterator[None]:
    """One pool process after another killed, while it runs a task."""
    # The process may run another task by now, or none.
    program = "import contextlib, os, sys\nwith contextlib.suppress(OSError): os.kill(int(sys.argv[1]), 9)"
    for _ in range(5):
        active = arena.stack.inside.call(run.inspect, "active")
        busy = {node: task["worker_pid"] for node, tasks in active.items() for task in tasks if task["worker_pid"]}
        for container in arena.low_workers():
            if pid := busy.get(f"low@{container.config.hostname}"):
                arena.stack.docker.container.execute(container, ["python3", "-c", program, str(pid)])
    yield


@contextmanager
def out_of_memory(arena: "Arena") -> Iterator[None]:
    """Tasks that use more memory, at their first run, than the container has: the kernel kills their process."""
    arena.submit("chaos.ledger.apply", 4, 0, 700)
    yield


@contextmanager
def controlled(arena: "Arena", command: str) -> Iterator[None]:
    """A remote control command sent to every low worker."""
    nodes = [f"low@{container.config.hostname}" for container in arena.low_workers()]
    arena.stack.inside.call(run.control, command, nodes)
    yield


@contextmanager
def cold_stop(arena: "Arena") -> Iterator[None]:
    """SIGQUIT twice: the second ends a soft shutdown. The engine restarts the workers."""
    for _ in range(2):
        for container in arena.low_workers():
            send_to_program(arena.stack, container, signal.SIGQUIT)
        time.sleep(1)  # two signals at the same time would be one
    yield


@contextmanager
def scaled(arena: "Arena") -> Iterator[None]:
    """Workers scaled up and down again: down while all of them are busy."""
    before = len(arena.low_workers())
    try:
        for replicas in (4, 1, 3):
            arena.stack.scale(worker_low=replicas)
            arena.stack.wait_healthy("worker-low")
            if replicas > 1:
                arena.occupy()
        yield
    finally:
        arena.stack.scale(worker_low=before)


@contextmanager
def second_beat(arena: "Arena") -> Iterator[None]:
    """One more beat, with the same schedule."""
    name = f"{arena.stack.project}-second-beat"
    arena.stack.start_client(name, "celery", "-A", "celery_app", "beat", "--pidfile=")
    try:
        yield
    finally:
        arena.stack.docker.container.kill(name)


@contextmanager
def publisher_killed(arena: "Arena") -> Iterator[None]:
    """The publisher killed between two publishes, or during one."""
    arena.stack.docker.container.kill(f"{arena.stack.project}-publisher")
    yield


# --- Special tasks ---


@contextmanager
def chord_members_killed(arena: "Arena") -> Iterator[None]:
    """A worker killed while it runs members of chords."""
    ids = arena.new_ids("chord", 8)
    arena.accept(arena.stack.inside.call(run.submit_chords, ids, 6, 0.5))
    poll_until(lambda: any("-chord" in task for task in arena.applied().executing()), "members running", 30)
    with one_killed(arena, "worker-low"):
        yield


@contextmanager
def delayed_over_a_restart(arena: "Arena") -> Iterator[None]:
    """Tasks that are due in 15 s, and their workers and the broker restarted before."""
    arena.submit("chaos.ledger.apply", 40, countdown=15)
    with restarted(arena, "worker-low", "redis"):
        yield


@contextmanager
def overrunning(arena: "Arena") -> Iterator[None]:
    """Tasks that exceed their time limits and ignore the soft one."""
    arena.submit_doomed("chaos.ledger.overrun", 6, 8, soft_time_limit=1, time_limit=2)
    yield


@contextmanager
def rate_limited(arena: "Arena") -> Iterator[None]:
    """Tasks of which each worker may start three per minute: the last one waits there for two minutes."""
    arena.submit("chaos.ledger.limited", 6 * len(arena.low_workers()))
    yield


@contextmanager
def malformed_messages(arena: "Arena") -> Iterator[None]:
    """One message of each kind of faults/malformed.py, at the front of the queue."""
    kinds = malformed.kinds(arena.stack.inside.call(run.largest_message))
    arena.stack.inside.call(run.push, "low", [base64.b64encode(raw).decode() for raw in kinds.values()])
    yield


# --- Networks ---

# In a container's network namespace: the index of the other end, on the host, of the interface with an address.
OTHER_END = """
import fcntl, socket, struct, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    for _, name in socket.if_nameindex():
        try:
            address = socket.inet_ntoa(fcntl.ioctl(s, 0x8915, struct.pack("256s", name.encode()))[20:24])
        except OSError:
            continue
        if address == sys.argv[1]:
            print(open(f"/sys/class/net/{name}/iflink").read())
"""

# On the host: sets interfaces up or down. SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP.
CABLES = """
import fcntl, socket, struct, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    for index, name in socket.if_nameindex():
        if str(index) in sys.argv[2:]:
            flags = struct.unpack("16sH14s", fcntl.ioctl(s, 0x8913, struct.pack("16sH14s", name.encode(), 0, b"")))[1]
            flags = flags | 1 if sys.argv[1] == "up" else flags & ~1
            fcntl.ioctl(s, 0x8914, struct.pack("16sH14s", name.encode(), flags, b""))
"""


@contextmanager
def cut_off(arena: "Arena", network: str, *containers: Container) -> Iterator[None]:
    """Containers whose packets on a network are dropped in both directions; connections are not refused."""
    ends = []
    for container in containers:
        address = (container.network_settings.networks or {})[f"{arena.stack.project}_{network}"].ip_address
        ends.append(arena.stack.python_as_root(OTHER_END, str(address), networks=[f"container:{container.id}"]))
    host: dict[str, Any] = {"networks": ["host"], "cap_add": ["NET_ADMIN"]}
    try:
        arena.stack.python_as_root(CABLES, "down", *ends, **host)
        yield
    finally:
        arena.stack.python_as_root(CABLES, "up", *ends, **host)


# --- Redis, as its admin user, which only the fault tests' Redis has (arena.changed) ---


def redis_cli(stack: Stack, service: str, *command: str) -> str:
    """The output of a command."""
    login = ["redis-cli", "--user", "admin", "--pass", "admin", "--no-auth-warning"]
    return str(stack.docker.container.execute(stack.container(service), [*login, *command]))


@contextmanager
def clients_killed(arena: "Arena") -> Iterator[None]:
    """Every connection to the broker closed, ten times."""
    for _ in range(10):
        redis_cli(arena.stack, "redis", "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        redis_cli(arena.stack, "redis", "CLIENT", "KILL", "TYPE", "pubsub")
    yield


@contextmanager
def deafened(arena: "Arena", which: str = "") -> Iterator[None]:
    """The low workers' connections to their queues, of which CLIENT LIST shows `which`, receive no more packets, but
    new connections do. The same happens to connections that a NAT has dropped."""
    clients = redis_cli(arena.stack, "redis", "CLIENT", "LIST")
    for worker in arena.low_workers():
        name = f"celery-worker:low@{worker.config.hostname}:low"
        ports = re.findall(rf"addr=\S+:(\d+) .*name={name} .*{which}", clients)
        namespaces: dict[str, Any] = {"pid": f"container:{worker.id}", "networks": ["none"]}
        arena.stack.python_as_root(DEAFEN, *ports, **namespaces, cap_add=["SYS_PTRACE", "NET_ADMIN"])
    yield


# In a worker's process namespace: its sockets with these local ports get a filter that drops all packets.
# 438 is pidfd_getfd, 26 is SO_ATTACH_FILTER, (6, 0, 0, 0) is BPF's "return 0": take 0 bytes.
DEAFEN = """
import ctypes, os, socket, struct, sys
libc = ctypes.CDLL(None)
no_packet = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))
worker = os.pidfd_open(int(open("/proc/1/task/1/children").read().split()[0]))
ports, found = {int(port) for port in sys.argv[1:]}, set()
for number in range(1024):
    copy = libc.syscall(438, worker, number, 0)
    if copy < 0:
        continue
    try:
        s = socket.socket(fileno=copy)
    except OSError:  # some other file
        os.close(copy)
        continue
    with s:
        if s.family == socket.AF_INET and (port := s.getsockname()[1]) in ports:
            s.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HP", 1, ctypes.addressof(no_packet)))
            found.add(port)
if not found:
    sys.exit(f"no socket with a local port of {ports}")
"""


@contextmanager
def full(arena: "Arena", service: str) -> Iterator[None]:
    """A Redis with a backlog that refuses writes, because maxmemory is reached."""
    arena.submit("chaos.ledger.apply", 300, 0.1)
    before = redis_cli(arena.stack, service, "CONFIG", "GET", "maxmemory").split()[-1]
    try:
        redis_cli(arena.stack, service, "CONFIG", "SET", "maxmemory", "1mb")
        yield
    finally:
        redis_cli(arena.stack, service, "CONFIG", "SET", "maxmemory", before)


@contextmanager
def emptied(arena: "Arena") -> Iterator[None]:
    """A broker that has lost all data."""
    redis_cli(arena.stack, "redis", "FLUSHALL")
    yield


@contextmanager
def disk_full(arena: "Arena") -> Iterator[None]:
    """A broker that cannot write its AOF: its disk, a small tmpfs in this row, is full."""
    redis = arena.stack.container("redis")
    fill = "dd if=/dev/zero of=/data/ballast bs=64k 2>/dev/null; true"
    try:
        arena.stack.docker.container.execute(redis, ["sh", "-c", fill])
        yield
    finally:
        arena.stack.docker.container.execute(redis, ["rm", "-f", "/data/ballast"])


@contextmanager
def power_lost(arena: "Arena", service: str) -> Iterator[None]:
    """Redis is killed, and its writes since the last fsync are removed, as in a power failure."""
    redis = arena.stack.container(service)
    volume = next(str(mount.name) for mount in redis.mounts if str(mount.destination) == "/data")
    namespaces: dict[str, Any] = {"pid": "host", "networks": [f"container:{redis.id}"]}
    arena.stack.python_as_root(POWER_LOST, str(redis.state.pid), volumes=[(volume, "/data")], **namespaces)
    yield


# WAITAOF returns when an fsync has ended. A second one, which times out after half a second waiting for a new write,
# shows that there was no fsync since then.
POWER_LOST = """
import glob, os, signal, socket, sys
pid = int(sys.argv[1])
redis = socket.create_connection(("127.0.0.1", 6379), timeout=10).makefile("rw", newline="")

def ask(*command):
    redis.write(" ".join(command) + "\\r\\n")
    redis.flush()
    answer = redis.readline().strip()
    assert answer[0] in "+*", answer
    return [redis.readline().strip() for _ in range(int(answer[1:]))] if answer[0] == "*" else answer

def newest():
    return max(glob.glob("/data/appendonlydir/*.incr.aof"), key=os.path.getmtime)

ask("AUTH", "admin", "admin")
for _ in range(20):
    ask("SET", "power", "1")
    synced = ask("WAITAOF", "1", "0", "5000")[0] == ":1"
    size = os.path.getsize(file := newest())
    ask("SET", "power", "2")
    if synced and ask("WAITAOF", "1", "0", "500")[0] == ":0" and newest() == file:
        break
else:
    sys.exit("no half second between two fsyncs in 20 tries")
os.kill(pid, signal.SIGKILL)
while os.path.exists(f"/proc/{pid}"):
    pass
os.truncate(file, size)
"""
