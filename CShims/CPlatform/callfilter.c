#define _GNU_SOURCE
#include "sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/fs.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__x86_64__)
#define OWN_ARCHITECTURE AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define OWN_ARCHITECTURE AUDIT_ARCH_AARCH64
#else
#error "the list of system calls is not made for this architecture"
#endif

// Calls that are allowed whatever their arguments are, the commonest first. For these the kernel remembers the
// answer by the number alone (Linux 5.11 and later), and does not run the filter at all.
static const int allowed[] = {
    // Serving.
    SYS_io_uring_enter, SYS_futex, SYS_read, SYS_write, SYS_ppoll, SYS_clock_nanosleep, SYS_clock_gettime,
    SYS_pread64, SYS_pwrite64, SYS_preadv, SYS_pwritev, SYS_readv, SYS_writev, SYS_fsync, SYS_fdatasync,
    SYS_fallocate, SYS_ftruncate, SYS_lseek, SYS_sync_file_range, SYS_fadvise64, SYS_copy_file_range,
    SYS_io_uring_setup, SYS_io_uring_register,
    // Memory.
    SYS_munmap, SYS_mremap, SYS_madvise, SYS_brk, SYS_msync, SYS_mincore, SYS_mlock, SYS_mlock2, SYS_munlock,
    // Clients, which connect to a socket that is open.
    SYS_accept4, SYS_recvfrom, SYS_sendto, SYS_recvmsg, SYS_sendmsg, SYS_shutdown, SYS_getsockopt,
    // Files: which ones, Landlock says.
    SYS_openat, SYS_close, SYS_dup, SYS_dup3, SYS_flock, SYS_eventfd2, SYS_getdents64, SYS_fstat,
    SYS_newfstatat, SYS_statx, SYS_statfs, SYS_fstatfs, SYS_faccessat, SYS_readlinkat, SYS_unlinkat, SYS_renameat,
    SYS_renameat2, SYS_mkdirat,
    // Threads, signals and time.
    SYS_exit, SYS_exit_group, SYS_rt_sigreturn, SYS_rt_sigprocmask, SYS_rt_sigaction, SYS_sigaltstack,
    SYS_restart_syscall, SYS_set_robust_list, SYS_rseq, SYS_membarrier, SYS_sched_yield, SYS_sched_getaffinity,
    SYS_sched_setaffinity, SYS_getcpu, SYS_nanosleep, SYS_clock_getres, SYS_gettimeofday,
    // The library of Swift's default executor, which the program links. Nothing runs on it as far as is known, and
    // it traps if these fail.
    SYS_epoll_create1, SYS_epoll_ctl, SYS_epoll_pwait, SYS_timerfd_create, SYS_timerfd_settime, SYS_timerfd_gettime,
    SYS_rt_sigsuspend,
    // Harmless questions.
    SYS_getpid, SYS_getppid, SYS_gettid, SYS_getuid, SYS_geteuid, SYS_getgid, SYS_getegid, SYS_getrandom, SYS_uname, SYS_sysinfo,
    SYS_getrusage,
#if defined(__x86_64__)
    // The C library uses these where other architectures have only their successors.
    SYS_poll, SYS_access, SYS_readlink, SYS_unlink, SYS_rmdir, SYS_rename, SYS_mkdir, SYS_dup2, SYS_time,
    SYS_epoll_wait,
    // The kernel's own, when an administrator traces functions of the program (uretprobe, uprobe).
    335, 336,
#endif
};

// Calls that no library makes on behalf of the daemon, and by which a process gets more than it has: other
// programs, processes, networks, file systems, identities, or the kernel itself. They end the process.
static const int breaches[] = {
    SYS_execve, SYS_execveat, SYS_ptrace, SYS_process_vm_readv, SYS_process_vm_writev, SYS_process_madvise,
    SYS_kcmp, SYS_kill, SYS_tkill, SYS_rt_sigqueueinfo, SYS_rt_tgsigqueueinfo, SYS_pidfd_open, SYS_pidfd_getfd,
    SYS_pidfd_send_signal, SYS_socket, SYS_socketpair, SYS_connect, SYS_bind, SYS_listen,
    SYS_mount, SYS_umount2, SYS_pivot_root, SYS_chroot, SYS_open_tree, SYS_move_mount, SYS_fsopen, SYS_fsconfig,
    SYS_fsmount, SYS_fspick, SYS_unshare, SYS_setns, SYS_open_by_handle_at, SYS_mknodat, SYS_swapon, SYS_swapoff,
    SYS_quotactl, SYS_acct, SYS_setuid, SYS_setgid, SYS_setreuid, SYS_setregid, SYS_setresuid, SYS_setresgid,
    SYS_setfsuid, SYS_setfsgid, SYS_setgroups, SYS_capset, SYS_add_key, SYS_request_key, SYS_keyctl, SYS_bpf,
    SYS_perf_event_open, SYS_userfaultfd, SYS_fanotify_init, SYS_init_module, SYS_finit_module,
    SYS_delete_module, SYS_kexec_load, SYS_reboot, SYS_settimeofday, SYS_clock_settime, SYS_clock_adjtime,
    SYS_adjtimex, SYS_sethostname, SYS_setdomainname, SYS_syslog, SYS_personality, SYS_memfd_create,
    SYS_pkey_mprotect,
#if defined(__x86_64__)
    SYS_fork, SYS_vfork, SYS_mknod, SYS_iopl, SYS_ioperm, SYS_modify_ldt, SYS_kexec_file_load,
#endif
};

// The first call that came after Linux 6.5. The C library asks for such calls first and has another way, which it
// takes after ENOSYS.
enum { FIRST_NEW_CALL = 451 };

// Requests to block devices; and whether something is a terminal, which the C library asks of streams.
static const unsigned device_requests[] = {BLKGETSIZE64, BLKDISCARD, BLKZEROOUT, BLKFLSBUF, 0x5401 /* TCGETS */};

_Static_assert(QUBLK_BREACH_SIGNAL == SIGSYS, "the kernel's number");

// What a descriptor is, and locks. No F_SETOWN: by it the kernel would send signals to other processes.
static const unsigned descriptor_requests[] = {
    F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_OFD_GETLK, F_OFD_SETLK, F_OFD_SETLKW, F_DUPFD_CLOEXEC,
};

// The name of a thread, PR_SET_IO_FLUSHER, PR_SET_VMA (names of memory).
static const unsigned settings[] = {PR_SET_NAME, 57, 0x53564d41};

// What pthread_create(3) asks of clone(2): a thread, in no new namespace.
enum {
  NEW_THREAD = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM | CLONE_SETTLS |
               CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID
};

// MARK: The program

// Of calls that a library may make one day, and whose failure it can bear: the kernel's log has each.
enum { REFUSED = SECCOMP_RET_ERRNO | EPERM };

enum { ROOM = 1024 };
struct program {
  struct sock_filter lines[ROOM];
  unsigned short count;
};

static void add(struct program *program, struct sock_filter line) {
  if (program->count < ROOM) program->lines[program->count++] = line;
}

static void load(struct program *program, size_t offset) {
  add(program, (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (unsigned)offset));
}

static void answer(struct program *program, unsigned what) {
  add(program, (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, what));
}

// The next `length` lines are for this value of what was loaded.
static void only_for(struct program *program, unsigned value, unsigned char length) {
  add(program, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 0, length));
}

static size_t low_half(int argument) { return offsetof(struct seccomp_data, args) + 8 * (size_t)argument; }

// Allows a call whose argument, of which the kernel looks at the lower half, is one of some values. Any other
// value has the answer `otherwise`.
static void allow_values(
    struct program *program, int call, int argument, const unsigned *values, unsigned char count,
    unsigned otherwise) {
  only_for(program, (unsigned)call, (unsigned char)(2 * count + 2));
  load(program, low_half(argument));
  for (unsigned i = 0; i < count; i++) {
    only_for(program, values[i], 1);
    answer(program, SECCOMP_RET_ALLOW);
  }
  answer(program, otherwise);
}

// Allows a call unless one of some bits of an argument is set.
static void allow_without(struct program *program, int call, int argument, unsigned bits) {
  only_for(program, (unsigned)call, 4);
  load(program, low_half(argument));
  add(program, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, bits, 1, 0));
  answer(program, SECCOMP_RET_ALLOW);
  answer(program, SECCOMP_RET_KILL_PROCESS);
}

// prlimit64 may only ask, and only of the process itself.
static void allow_own_limits(struct program *program) {
  const size_t zeros[] = {low_half(0), low_half(2), low_half(2) + 4};
  only_for(program, SYS_prlimit64, 8);
  for (int i = 0; i < 3; i++) {
    load(program, zeros[i]);
    add(program, (struct sock_filter)BPF_JUMP(
        BPF_JMP | BPF_JEQ | BPF_K, 0, 0, (unsigned char)(2 * (2 - i) + 1)));
  }
  answer(program, SECCOMP_RET_ALLOW);
  answer(program, REFUSED);
}

static void build(struct program *program) {
  program->count = 0;
  load(program, offsetof(struct seccomp_data, arch));
  add(program, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, OWN_ARCHITECTURE, 1, 0));
  answer(program, SECCOMP_RET_KILL_PROCESS);
  load(program, offsetof(struct seccomp_data, nr));
#if defined(__x86_64__)
  // The calls of x32 have this bit, and the architecture of x86-64.
  add(program, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, 0x40000000, 0, 1));
  answer(program, SECCOMP_RET_KILL_PROCESS);
#endif
  for (size_t i = 0; i < sizeof allowed / sizeof allowed[0]; i++) {
    only_for(program, (unsigned)allowed[i], 1);
    answer(program, SECCOMP_RET_ALLOW);
  }
  const unsigned thread = NEW_THREAD, process = (unsigned)getpid();
  allow_without(program, SYS_mmap, 2, PROT_EXEC);
  allow_without(program, SYS_mprotect, 2, PROT_EXEC);
  allow_values(program, SYS_clone, 0, &thread, 1, SECCOMP_RET_KILL_PROCESS);
  // A filter of its own has refused it.
  only_for(program, SYS_clone3, 1);
  answer(program, SECCOMP_RET_ALLOW);
  allow_values(
      program, SYS_ioctl, 1, device_requests, sizeof device_requests / sizeof device_requests[0], REFUSED);
  allow_values(
      program, SYS_fcntl, 1, descriptor_requests, sizeof descriptor_requests / sizeof descriptor_requests[0],
      REFUSED);
  allow_values(program, SYS_prctl, 0, settings, sizeof settings / sizeof settings[0], REFUSED);
  // abort(3) sends itself a signal.
  allow_values(program, SYS_tgkill, 0, &process, 1, SECCOMP_RET_KILL_PROCESS);
  allow_own_limits(program);
  for (size_t i = 0; i < sizeof breaches / sizeof breaches[0]; i++) {
    only_for(program, (unsigned)breaches[i], 1);
    answer(program, SECCOMP_RET_KILL_PROCESS);
  }
  add(program, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, FIRST_NEW_CALL, 0, 1));
  answer(program, SECCOMP_RET_ERRNO | ENOSYS);
  answer(program, REFUSED);
}

// clone3 has its flags in memory, where a filter cannot see them. The C library asks for it at each new thread and
// takes clone after ENOSYS. A filter of its own keeps that out of the kernel's log.
static void build_for_clone3(struct program *program) {
  program->count = 0;
  load(program, offsetof(struct seccomp_data, nr));
  only_for(program, SYS_clone3, 1);
  answer(program, SECCOMP_RET_ERRNO | ENOSYS);
  answer(program, SECCOMP_RET_ALLOW);
}

// For all threads. What a filter refuses stays refused, whatever a later one says.
static int enter(struct program *program, unsigned flags) {
  if (program->count == ROOM) return -E2BIG;
  const struct sock_fprog filter = {.len = program->count, .filter = program->lines};
  long result = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC | flags, &filter);
  if (result < 0) return -errno;
  return result > 0 ? -EBUSY : 0;  // a thread has a filter of its own
}

int qublk_filter_calls(void) {
  struct program program;
  build_for_clone3(&program);
  int result = enter(&program, 0);
  if (result < 0) return result;
  build(&program);
  return enter(&program, SECCOMP_FILTER_FLAG_LOG);
}
