"""A grader that attacks: `item["attack"]` names the function, the rest of `item` says where the bait lies.

Never imported: the harness hands it to the sandbox as text. A function returns 1 for an escape and 0 for
being held; an OSError was held too. `control` must return 0.5 after every attack. `a` numbers are those of
the list in the sandbox's design; what begins with `x` goes beyond it.
"""

import builtins
import ctypes
import json
import os
import resource
import signal
import socket
import sys
import threading
import time
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
X86 = os.uname().machine == "x86_64"


def control(item):
    return 0.5


# Secrets


def a01_secret_in_environment(item):
    return float(item["mark"] in repr(dict(os.environ)))


def a02_database_file(item):
    return float(len(Path(item["database"]).read_bytes()) > 0)


def a03_password_file(item):
    return float("root" in Path("/etc/passwd").read_text())


def a04_home_directories(item):
    seen = 0
    for folder in ("/root", "/home", item["private"], item["work"]):
        try:
            seen += len([name for name in os.listdir(folder) if not name.startswith(".pyenv")])
        except OSError:
            pass
    return float(seen > 0)


def a05_every_process_environ(item):
    for process in [*Path("/proc").glob("[0-9]*"), Path(f"/proc/{item['pid']}")]:
        try:
            if item["mark"] in (process / "environ").read_text(errors="replace"):
                return 1.0
        except OSError:
            pass
    return 0.0


# Network and sockets


def a06_tcp(item):
    socket.create_connection(("127.0.0.1", item["tcp"]), timeout=1).sendall(b"x")
    return 1.0


def a07_udp(item):
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", item["udp"]))
    return 1.0


def a08_abstract_socket(item):
    socket.socket(socket.AF_UNIX).connect("\0" + item["abstract"])
    return 1.0


def a09_path_socket(item):
    socket.socket(socket.AF_UNIX).connect(item["socket"])
    return 1.0


def a10_rare_socket_families(item):
    opened = 0
    for family, kind in ((16, 3), (17, 3), (40, 1), (38, 5)):
        opened += LIBC.socket(family, kind, 0) >= 0
    return float(opened > 0)


# Disk and memory


def a11_create_files_everywhere(item):
    made = 0
    for folder in item["folders"]:
        try:
            Path(folder, item["mark"]).write_text("x")
        except OSError:
            continue
        made += 1
    return float(made > 0)


def a12_fill_the_scratch(item):
    written = 0
    for index in range(6):
        with open(f"scratch-{index}", "wb") as out:
            for _ in range(50):
                out.write(b"x" * 1024 * 1024)
                out.flush()
                written += 1
    return float(written >= 300)


def a13_allocate_4_gb(item):
    held = bytearray(4 * 1024**3)
    held[::4096] = b"x" * len(held[::4096])
    return 1.0


def a14_hold_900_mb_in_memfds(item):
    held = 0
    for _ in range(40):
        descriptor = LIBC.memfd_create(b"x", 0)
        if descriptor < 0:
            break
        os.ftruncate(descriptor, 32 * 1024**2)
        held += os.pwrite(descriptor, b"x" * 32 * 1024**2, 0)
    return float(held > 900 * 1024**2)


# Processes and time


def a15_fork_300(item):
    for _ in range(300):
        try:
            if os.fork() == 0:
                time.sleep(60)
                os._exit(0)
        except OSError:
            continue
        return 1.0
    return 0.0


def a16_start_3000_threads(item):
    threading.stack_size(64 * 1024)
    done = threading.Event()
    started = 0
    try:
        for _ in range(3000):
            threading.Thread(target=done.wait, daemon=True).start()
            started += 1
    except (RuntimeError, MemoryError):
        pass
    done.set()
    return float(started >= 1000)


def a17_loop_for_ever(item):
    while True:
        pass


def a18_sleep_deaf_to_signals(item):
    for number in (signal.SIGTERM, signal.SIGALRM, signal.SIGINT, signal.SIGXCPU):
        signal.signal(number, signal.SIG_IGN)
    while True:
        time.sleep(60)


def a19_double_fork_a_sleeper(item):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execv("/bin/sleep", ["sleep", item["sleep"]])
        os._exit(0)
    return 1.0


def a20_run_a_program(item):
    os.execv("/bin/sh", ["sh", "-c", f"sleep {item['sleep']}"])


# Other processes and the kernel


def a21_signal_the_parent(item):
    hit = 0
    for pid in (os.getppid(), item["pid"], 1, -1, 0):
        for send in (os.kill, os.killpg):
            try:
                send(pid, signal.SIGTERM if pid in (0, -1) else signal.SIGKILL)
                hit += 1
            except OSError:
                pass
    return float(hit > 0)


def a22_ptrace_the_parent(item):
    attach, seize = 16, 0x4206
    return float(any(LIBC.ptrace(how, pid, 0, 0) == 0 for how in (attach, seize) for pid in _others(item)))


def a23_read_the_parents_memory(item):
    room = ctypes.create_string_buffer(64)
    local = (ctypes.c_size_t * 2)(ctypes.addressof(room), 64)
    remote = (ctypes.c_size_t * 2)(item["address"], 64)
    for pid in _others(item):
        LIBC.process_vm_readv(pid, local, 1, remote, 1, 0)
    seen = room.raw
    for pid in _others(item):
        try:
            with open(f"/proc/{pid}/mem", "rb") as memory:
                memory.seek(item["address"])
                seen += memory.read(64)
        except OSError:
            pass
    return float(item["known"].encode() in seen)


RISKY = {
    "unshare": (272, 97), "io_uring_setup": (425, 425), "bpf": (321, 280), "keyctl": (250, 219),
    "add_key": (248, 217), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "mount": (165, 40),
    "setns": (308, 268), "pidfd_open": (434, 434), "open_by_handle_at": (304, 265), "socket": (41, 198),
    "socketpair": (53, 199), "memfd_create": (319, 279), "personality": (135, 92), "syslog": (103, 116),
    "kexec_load": (246, 104), "init_module": (175, 105), "quotactl": (179, 60), "acct": (163, 89),
    "fanotify_init": (300, 262), "move_pages": (279, 239), "mbind": (237, 235), "seccomp": (317, 277),
    "prctl": (157, 167), "modify_ldt": (154, None), "vmsplice": (278, 75), "shmget": (29, 194),
}  # fmt: skip


def a24_risky_system_calls(item):
    passed = []
    for name, numbers in RISKY.items():
        number = numbers[0] if X86 else numbers[1]
        if number is None:
            continue
        ctypes.set_errno(0)
        # prctl(PR_SET_DUMPABLE, 1); for the others, arguments that would get past their first look.
        arguments = (4, 1, 0, 0, 0) if name == "prctl" else (1, 1, 0, 0, 0)
        result = LIBC.syscall(number, *map(ctypes.c_long, arguments))
        if result >= 0 or ctypes.get_errno() not in (1, 38):
            passed.append(name)
    print(passed)
    return float(bool(passed))


# The result channel


def a25_fake_results_then_raise(item):
    for descriptor in range(12):
        try:
            os.write(descriptor, b'{"reward": 1.0}')
        except OSError:
            pass
    raise RuntimeError("after the fake")


def a26_flood_stdout_and_stderr(item):
    for stream in (sys.stdout, sys.stderr):
        for _ in range(100):
            stream.write("x" * 1024 * 1024)
        stream.flush()
    return 0.0


def a27_sys_exit(item):
    sys.exit(0)


def a28_os_exit(item):
    os._exit(0)


def a29_dereference_null(item):
    return float(ctypes.string_at(0)[0])


def a30_recurse_without_end(item):
    sys.setrecursionlimit(10**9)

    def again(depth):
        return again(depth + 1) + 1

    return again(0)


def a31_return_50_mb(item):
    return "x" * 50 * 1024**2


def a32_return_nan(item):
    return float("nan")


def a33_walk_the_frames(item):
    found, frame = "", sys._getframe()
    while frame is not None:
        found += repr(list(frame.f_locals.values())) + repr(list(frame.f_globals.values()))[:100_000]
        frame = frame.f_back
    # The item itself holds the mark and the known string; the service's own secret stands in neither.
    return float(item["secret_reversed"][::-1] in found)


def a34_forge_through_builtins(item):
    builtins.left_behind = item["mark"]
    json.dumps = lambda *_, **__: '{"reward": 0.75}'
    json.JSONEncoder.encode = lambda *_: '{"reward": 0.75}'
    Path("left-behind").write_text(item["mark"]) if os.access(".", os.W_OK) else None
    return 0.0


def a35_look_for_what_was_left(item):
    left = hasattr(builtins, "left_behind") or json.dumps([]) != "[]" or Path("left-behind").exists()
    return float(left or "grader" not in sys.modules)


def a36_prlimit_another_process(item):
    limit = (ctypes.c_ulonglong * 2)(1, 1)
    room = (ctypes.c_ulonglong * 2)()
    done = [LIBC.prlimit(pid, resource.RLIMIT_NOFILE, limit, room) for pid in _others(item)]
    return float(0 in done)


def a37_pin_another_process(item):
    mask = (ctypes.c_ulong * 16)(1)
    return float(any(LIBC.sched_setaffinity(pid, 128, mask) == 0 for pid in _others(item)))


def a38_truncate_a_foreign_file(item):
    try:
        os.truncate(item["database"], 0)
    except OSError:
        os.open(item["database"], os.O_WRONLY | os.O_TRUNC)
    return 1.0


def x39_signal_through_a_pipes_owner(item):
    set_owner, set_signal, set_flags, asynchronous = 8, 10, 4, 0o20000
    reading, writing = os.pipe()
    for pid in _others(item):
        if LIBC.fcntl(reading, set_owner, pid) == 0:
            LIBC.fcntl(reading, set_signal, int(signal.SIGKILL))
            LIBC.fcntl(reading, set_flags, asynchronous)
            os.write(writing, b"x")
            return 1.0
    return 0.0


def x40_change_a_foreign_file_without_opening_it(item):
    done = 0
    for change in (
        lambda path: os.chmod(path, 0o777),
        lambda path: os.chown(path, os.getuid(), -1),
        lambda path: os.utime(path, (0, 0)),
        lambda path: os.setxattr(path, "user.x", b"x"),
        lambda path: os.link(path, path + "-link"),
        lambda path: os.symlink(path, path + "-symlink"),
        lambda path: os.rename(path, path + "-moved"),
        lambda path: os.unlink(path),
    ):
        try:
            change(item["database"])
            done += 1
        except OSError:
            pass
    return float(done > 0)


def x41_raise_its_own_limits(item):
    raised = 0
    for which in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE):
        try:
            resource.setrlimit(which, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            raised += 1
        except (OSError, ValueError):
            pass
    return float(raised > 0)


def x42_clone_with_namespaces_or_without_a_thread(item):
    number = 56 if X86 else 220
    new_user, sigchld = 0x10000000, 17
    for flags in (new_user | sigchld, sigchld):
        result = LIBC.syscall(number, ctypes.c_long(flags), 0, 0, 0, 0)
        if result == 0:
            os._exit(0)
        if result > 0:
            return 1.0
    return 0.0


def x43_outlive_the_answer(item):
    """Close the way back and go on working."""
    for descriptor in range(3, 64):
        try:
            os.close(descriptor)
        except OSError:
            pass
    time.sleep(30)


def x44_answer_with_what_no_reader_survives(item):
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, b"[" * 60_000)
        except OSError:
            pass
    os._exit(0)


def x45_leave_a_folder_nobody_can_clear(item):
    os.mkdir("locked", 0o000)
    os.makedirs("/".join("d" * 400), exist_ok=True)
    return 0.0


def _others(item):
    return [os.getppid(), item["pid"]]


def grade(sample, item):
    return globals()[item["attack"]](item)
