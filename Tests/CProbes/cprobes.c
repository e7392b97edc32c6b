#define _GNU_SOURCE
#include "cprobes.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <liburing.h>

static int result_of(long value) { return value < 0 ? errno : 0; }

// Another process. It is asked for at the start: getppid(2) is a call that serving does not need.
static pid_t parent;
__attribute__((constructor)) static void find_parent(void) { parent = getppid(); }
static pid_t other(void) { return parent; }

static int read_foreign_file(void) { return result_of(open("/etc/passwd", O_RDONLY)); }
static int write_foreign_file(void) { return result_of(open("/tmp/qublk-confined", O_WRONLY | O_CREAT, 0600)); }
static int look_into_process(void) { return result_of(open("/proc/1/environ", O_RDONLY)); }
static int list_directory(void) { return result_of(open("/etc", O_RDONLY | O_DIRECTORY)); }

static int execute(void) {
  char *words[] = {"true", NULL};
  return result_of(execve("/bin/true", words, NULL));
}
static int new_process(void) { return result_of(syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL)); }
static int new_process_by_clone3(void) {
  uint64_t arguments[8] = {0, 0, 0, 0, SIGCHLD};
  return result_of(syscall(SYS_clone3, arguments, sizeof arguments));
}
static int new_user_namespace(void) { return result_of(unshare(CLONE_NEWUSER)); }
static int trace(void) { return result_of(ptrace(PTRACE_ATTACH, other(), NULL, NULL)); }
static int mount_something(void) { return result_of(mount("none", "/mnt", "tmpfs", 0, NULL)); }
static int internet_socket(void) { return result_of(socket(AF_INET, SOCK_STREAM, 0)); }
static int unix_socket(void) { return result_of(socket(AF_UNIX, SOCK_STREAM, 0)); }
static int signal_other(void) { return result_of(kill(other(), SIGCONT)); }
static int signal_thread_of_other(void) { return result_of(syscall(SYS_tgkill, other(), other(), SIGCONT)); }
static int signal_by_descriptor(void) { return result_of(fcntl(0, F_SETOWN, other())); }
static int raise_capability(void) {
  struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
  struct __user_cap_data_struct sets[2] = {{~0U, ~0U, ~0U}, {~0U, ~0U, ~0U}};
  return result_of(syscall(SYS_capset, &header, sets));
}
static int become_other_user(void) { return result_of(syscall(SYS_setuid, 1)); }
static int make_code(void) {
  void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return page == MAP_FAILED ? errno : 0;
}
static int turn_into_code(void) {
  void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return result_of(mprotect(page, 4096, PROT_READ | PROT_EXEC));
}
static int allow_core_dump(void) { return result_of(prctl(PR_SET_DUMPABLE, 1UL, 0UL, 0UL, 0UL)); }
static int read_memory_of_other(void) {
  char byte;
  struct iovec here = {&byte, 1}, there = {(void *)4096, 1};
  return result_of(process_vm_readv(other(), &here, 1, &there, 1, 0));
}
static int open_by_handle(void) {
  uint32_t handle[2] = {0, 0};
  return result_of(syscall(SYS_open_by_handle_at, AT_FDCWD, handle, O_RDONLY));
}
static int load_kernel_program(void) { return result_of(syscall(SYS_bpf, 0, NULL, 0)); }
static int change_limit(void) {
  const struct rlimit limit = {64, 64};
  return result_of(prlimit(0, RLIMIT_NOFILE, &limit, NULL));
}
static int unknown_ioctl(void) { return result_of(syscall(SYS_ioctl, 0, 0x5412 /* TIOCSTI */, "x")); }
static int no_such_call(void) { return result_of(syscall(999)); }

#if defined(__x86_64__)
static int x32_call(void) { return result_of(syscall(0x40000000 | SYS_getpid)); }
// getpid(2) of 32-bit programs, whose number is that of writev(2) here: 20.
static int i386_call(void) {
  long result;
  __asm__ volatile("int $0x80" : "=a"(result) : "0"(20L) : "memory", "r8", "r9", "r10", "r11");
  return result < 0 ? (int)-result : 0;
}
#endif

// What a ring is asked for, no filter of system calls sees.
static int by_ring(void (*prepare)(struct io_uring_sqe *)) {
  struct io_uring ring;
  struct io_uring_cqe *answer;
  int result = io_uring_queue_init(4, &ring, 0);
  if (result < 0) return -result;
  prepare(io_uring_get_sqe(&ring));
  io_uring_submit(&ring);
  result = io_uring_wait_cqe(&ring, &answer);
  if (result == 0) result = answer->res;
  io_uring_queue_exit(&ring);
  return result < 0 ? -result : 0;
}
static void prepare_open(struct io_uring_sqe *entry) {
  io_uring_prep_openat(entry, AT_FDCWD, "/etc/passwd", O_RDONLY, 0);
}
static int open_by_ring(void) { return by_ring(prepare_open); }

static int ring_socket = -1;
static const struct sockaddr_in neighbour = {.sin_family = AF_INET, .sin_port = 0x5000, .sin_addr = {0x0100007f}};
static void prepare_datagram_socket(struct io_uring_sqe *entry) {
  io_uring_prep_rw(45 /* IORING_OP_SOCKET */, entry, AF_INET, NULL, 0, SOCK_DGRAM);
}
static void prepare_connect(struct io_uring_sqe *entry) {
  io_uring_prep_connect(entry, ring_socket, (const struct sockaddr *)&neighbour, sizeof neighbour);
}
// A datagram socket: Landlock knows TCP alone.
static int network_by_ring(void) {
  struct io_uring ring;
  struct io_uring_cqe *answer;
  int result = io_uring_queue_init(4, &ring, 0);
  if (result < 0) return -result;
  prepare_datagram_socket(io_uring_get_sqe(&ring));
  io_uring_submit(&ring);
  if ((result = io_uring_wait_cqe(&ring, &answer))) return -result;
  ring_socket = answer->res;
  io_uring_cqe_seen(&ring, answer);
  if (ring_socket < 0) return -ring_socket;
  prepare_connect(io_uring_get_sqe(&ring));
  io_uring_submit(&ring);
  if ((result = io_uring_wait_cqe(&ring, &answer))) return -result;
  result = answer->res;
  return result < 0 ? -result : 0;
}

static const struct {
  const char *name;
  int (*attempt)(void);
} attempts[] = {
    {"read-foreign-file", read_foreign_file},
    {"write-foreign-file", write_foreign_file},
    {"look-into-process", look_into_process},
    {"list-directory", list_directory},
    {"execute", execute},
    {"new-process", new_process},
    {"new-process-by-clone3", new_process_by_clone3},
    {"new-user-namespace", new_user_namespace},
    {"trace", trace},
    {"mount", mount_something},
    {"internet-socket", internet_socket},
    {"unix-socket", unix_socket},
    {"signal-other", signal_other},
    {"signal-thread-of-other", signal_thread_of_other},
    {"signal-by-descriptor", signal_by_descriptor},
    {"raise-capability", raise_capability},
    {"become-other-user", become_other_user},
    {"make-code", make_code},
    {"turn-into-code", turn_into_code},
    {"allow-core-dump", allow_core_dump},
    {"read-memory-of-other", read_memory_of_other},
    {"open-by-handle", open_by_handle},
    {"load-kernel-program", load_kernel_program},
    {"change-limit", change_limit},
    {"unknown-ioctl", unknown_ioctl},
    {"no-such-call", no_such_call},
#if defined(__x86_64__)
    {"x32-call", x32_call},
    {"i386-call", i386_call},
#endif
    {"open-by-ring", open_by_ring},
    {"network-by-ring", network_by_ring},
};

// Calls of which the filter looks at the number alone, with arguments that no kernel takes.
#define CALL(name) {#name, SYS_##name}
static const struct {
  const char *name;
  long number;
} calls[] = {
    // Those that end the process.
    CALL(execve), CALL(execveat), CALL(ptrace), CALL(process_vm_readv), CALL(process_vm_writev),
    CALL(process_madvise), CALL(kcmp), CALL(kill), CALL(tkill), CALL(rt_sigqueueinfo), CALL(rt_tgsigqueueinfo),
    CALL(pidfd_open), CALL(pidfd_getfd), CALL(pidfd_send_signal), CALL(socket), CALL(socketpair), CALL(connect),
    CALL(bind), CALL(listen), CALL(mount), CALL(umount2), CALL(pivot_root), CALL(chroot), CALL(open_tree),
    CALL(move_mount), CALL(fsopen), CALL(fsconfig), CALL(fsmount), CALL(fspick), CALL(unshare), CALL(setns),
    CALL(open_by_handle_at), CALL(mknodat), CALL(swapon), CALL(swapoff), CALL(quotactl), CALL(acct), CALL(setuid),
    CALL(setgid), CALL(setreuid), CALL(setregid), CALL(setresuid), CALL(setresgid), CALL(setfsuid), CALL(setfsgid),
    CALL(setgroups), CALL(capset), CALL(add_key), CALL(request_key), CALL(keyctl), CALL(bpf), CALL(perf_event_open),
    CALL(userfaultfd), CALL(fanotify_init), CALL(init_module), CALL(finit_module), CALL(delete_module),
    CALL(kexec_load), CALL(reboot), CALL(settimeofday), CALL(clock_settime), CALL(clock_adjtime), CALL(adjtimex),
    CALL(sethostname), CALL(setdomainname), CALL(syslog), CALL(personality), CALL(memfd_create), CALL(pkey_mprotect),
#if defined(__x86_64__)
    CALL(fork), CALL(vfork), CALL(mknod), CALL(iopl), CALL(ioperm), CALL(modify_ldt), CALL(kexec_file_load),
#endif
    // Those that are refused.
    CALL(getpgid), CALL(shmget), CALL(getitimer), {"cachestat", 451}, {"mseal", 462},
};

static int try_call(const char *name) {
  for (unsigned i = 0; i < sizeof calls / sizeof calls[0]; i++) {
    if (strcmp(calls[i].name, name) == 0) return result_of(syscall(calls[i].number, -1, -1, -1, -1, -1, -1));
  }
  return -1;
}

int try_forbidden(const char *name) {
  if (strncmp(name, "call-", 5) == 0) return try_call(name + 5);
  for (unsigned i = 0; i < sizeof attempts / sizeof attempts[0]; i++) {
    if (strcmp(attempts[i].name, name) == 0) return attempts[i].attempt();
  }
  return -1;
}

int lack_landlock(void) {
  struct sock_filter lines[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_landlock_create_ruleset, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const struct sock_fprog filter = {.len = sizeof lines / sizeof lines[0], .filter = lines};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1UL, 0UL, 0UL, 0UL) < 0) return errno;
  return result_of(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &filter));
}
