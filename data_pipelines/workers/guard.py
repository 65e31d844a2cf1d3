"""What a child process gives up before it opens files of strangers, all without privileges.

    guard.enter(memory_bytes=512 << 20)

A decoder that is taken over, or that only misbehaves, can then use so much memory and no more, make
no file, start no program, reach no network, and open no file but the code of Python: what it is to
decode comes as bytes or as an open file (`workers.Pool(...)(task, files=[...])`), or lies under
`readable`. Linux only: rlimits, seccomp-BPF (Linux 3.17), Landlock (5.13), network namespaces.
What a kernel does not have is left out, and missing from the answer of `enter`.
"""

import ctypes
import errno
import math
import os
import platform
import resource
import struct
import sys
from collections.abc import Iterable

_PR_SET_NO_NEW_PRIVS, _PR_SET_DUMPABLE = 38, 4
_CLONE_THREAD, _CLONE_NEWUSER, _CLONE_NEWNET = 0x10000, 0x10000000, 0x40000000
_FILE_MEMORY = 64 << 20  # resident pages of libraries, which RLIMIT_DATA does not count: ~50 MiB
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/etc/ld.so.cache", "/etc/localtime")

# Numbers of <asm/unistd.h>: (x86_64, aarch64); None: not on this machine.
_DENIED = {
    "socket": (41, 198),
    "socketpair": (53, 199),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept": (43, 202),
    "accept4": (288, 242),
    "sendto": (44, 206),
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "unshare": (272, 97),
    "setns": (308, 268),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "open_by_handle_at": (304, 265),
}
_CLONE, _CLONE3, _SECCOMP = (56, 220), (435, 435), (317, 277)
_AUDIT_ARCH = (0xC000003E, 0xC00000B7)
_MACHINES = ("x86_64", "aarch64")

_libc = ctypes.CDLL(None, use_errno=True)


def enter(
    memory_bytes: int = 512 << 20,
    *,
    readable: Iterable[str | os.PathLike] = (),
    files: int = 64,
    file_bytes: int = 64 << 20,
) -> dict[str, str]:
    """Locks this process up for the rest of its life; call it after imports, before any file.

    Args:
        memory_bytes: For all that is resident. RLIMIT_DATA bounds what is allocated, so that an
            allocation fails; the pages of libraries come on top and are taken off here.
        readable: Files and folders that it may open, beside Python's own code.
        files: Open at once.
        file_bytes: Size to which a file may grow that is already open: a log, as standard error.

    Returns:
        What holds now: keys of "memory", "files" (Landlock), "network" and "programs" (seccomp),
        each with how; a key is missing where the system cannot do it.
    """
    done = {}
    if sys.platform == "linux":
        _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
        if _leave_network():
            done["network"] = "namespace"
        if _only_read(readable):
            done["files"] = "landlock"
    for name, value in (
        ("RLIMIT_CORE", 0),
        ("RLIMIT_FSIZE", file_bytes),
        ("RLIMIT_NOFILE", files),
        # what allocates: private writable pages. RLIMIT_AS would count the mapped libraries too
        ("RLIMIT_DATA", max(memory_bytes - _FILE_MEMORY, memory_bytes // 2)),
    ):
        _lower(getattr(resource, name), value)
    done["memory"] = "rlimit"
    if sys.platform == "linux" and _filter_calls():
        done["programs"] = "seccomp"
        done["network"] = " and ".join(filter(None, [done.get("network"), "seccomp"]))
    return done


def limit_cpu(seconds: float):
    """Ends this process when it has used so many more seconds of processor time."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = math.ceil(used.ru_utime + used.ru_stime + seconds) + 1
    if hard == resource.RLIM_INFINITY or soft < hard:
        resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def _lower(which: int, value: int):
    _, hard = resource.getrlimit(which)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (value, value))


def _leave_network() -> bool:
    """Moves into a network namespace without interfaces; a user namespace may give the right to."""
    if _libc.unshare(_CLONE_NEWNET) == 0:
        return True
    return _libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0  # needs a process of one thread


def _only_read(readable: Iterable[str | os.PathLike]) -> bool:
    """Landlock: takes away every access to files but reading code and `readable`.

    Numbers of <linux/landlock.h>; the system calls have the same numbers on every machine.
    """
    create, add, restrict = 444, 445, 446
    version = _libc.syscall(create, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return False
    every_right = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
    attributes = struct.pack("Q", every_right)
    ruleset = _libc.syscall(create, attributes, ctypes.c_size_t(len(attributes)), 0)
    if ruleset < 0:
        return False
    read_file, read_folder = 1 << 2, 1 << 3
    try:
        for path in [*_code(), *_DEVICES, "/proc/self", *readable]:
            try:
                handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except OSError:
                continue  # what is not there need not be read
            rights = read_file | (read_folder if os.path.isdir(path) else 0)
            _libc.syscall(add, ruleset, 1, struct.pack("=Qi", rights, handle), 0)
            os.close(handle)
        return _libc.syscall(restrict, ruleset, 0) == 0
    finally:
        os.close(ruleset)


def _code() -> list[str]:
    """Folders and files that hold Python's and the system's libraries, for imports yet to come.

    Of a folder on Python's path that is none of an installation (a check-out, where data may lie
    beside the code) only modules, packages, and the `*.libs` folders that wheels put beside a
    package for the shared libraries it links to.
    """
    whole = {"/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/local/lib"}
    whole |= {os.path.join(p, "lib") for p in (sys.prefix, sys.base_prefix, sys.exec_prefix)}
    found = sorted(whole)
    for folder in sys.path:
        folder = os.path.realpath(folder or ".")
        if not os.path.isdir(folder) or any(folder.startswith(w + os.sep) for w in whole):
            continue
        for entry in os.scandir(folder):
            is_package = entry.is_dir() and os.path.exists(os.path.join(entry.path, "__init__.py"))
            if is_package or entry.name.endswith((".py", ".so", ".pth", ".libs")):
                found.append(entry.path)
    return found


def _filter_calls() -> bool:
    """Seccomp: network, new programs and processes, and tracing of others fail with EPERM.

    Threads stay possible: clone3 hides its flags from a filter, so it is said not to exist, and the
    C library falls back to clone.
    """
    if platform.machine() not in _MACHINES:
        return False
    machine = _MACHINES.index(platform.machine())
    load, jump_equal, jump_over, jump_any, give = 0x20, 0x15, 0x35, 0x45, 0x06
    refuse = lambda error: 0x00050000 | error
    allow, kill = 0x7FFF0000, 0x80000000
    program = [
        (load, 0, 0, 4),  # seccomp_data.arch
        (jump_equal, 1, 0, _AUDIT_ARCH[machine]),
        (give, 0, 0, kill),
        (load, 0, 0, 0),  # seccomp_data.nr
        (jump_over, 0, 1, 0x40000000),  # the x32 names of the same calls
        (give, 0, 0, refuse(errno.EPERM)),
        (jump_equal, 0, 1, _CLONE3[machine]),
        (give, 0, 0, refuse(errno.ENOSYS)),
    ]
    for numbers in _DENIED.values():
        if numbers[machine] is not None:
            program += [
                (jump_equal, 0, 1, numbers[machine]),
                (give, 0, 0, refuse(errno.EPERM)),
            ]
    program += [
        (jump_equal, 0, 3, _CLONE[machine]),
        (load, 0, 0, 16),  # its flags
        (jump_any, 1, 0, _CLONE_THREAD),
        (give, 0, 0, refuse(errno.EPERM)),
        (give, 0, 0, allow),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    head = ctypes.create_string_buffer(
        struct.pack("HxxxxxxQ", len(program), ctypes.addressof(code))
    )
    set_filter, all_threads = 1, 1
    return _libc.syscall(_SECCOMP[machine], set_filter, all_threads, head) == 0
