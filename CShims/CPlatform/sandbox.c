#define _GNU_SOURCE
#include "sandbox.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static int result_of(long value) { return value < 0 ? -errno : 0; }

int qublk_give_up_new_privileges(void) {
  return result_of(prctl(PR_SET_NO_NEW_PRIVS, 1UL, 0UL, 0UL, 0UL));
}

int qublk_keep_capabilities(uint64_t kept) {
  // Without CAP_SETPCAP the bounding set stays. It matters to programs that are executed, of which there are none.
  for (unsigned long number = 0; prctl(PR_CAPBSET_READ, number, 0UL, 0UL, 0UL) >= 0; number++) {
    if (!(kept >> number & 1)) prctl(PR_CAPBSET_DROP, number, 0UL, 0UL, 0UL);
  }
  prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0UL, 0UL, 0UL);
  struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
  struct __user_cap_data_struct sets[2];
  if (syscall(SYS_capget, &header, sets) < 0) return -errno;
  for (int half = 0; half < 2; half++) {
    sets[half].permitted &= (uint32_t)(kept >> 32 * half);
    sets[half].effective = sets[half].permitted;
    sets[half].inheritable = 0;
  }
  return result_of(syscall(SYS_capset, &header, sets));
}

int qublk_lift_memory_lock_limit(void) {
  const struct rlimit none = {RLIM_INFINITY, RLIM_INFINITY};
  return result_of(setrlimit(RLIMIT_MEMLOCK, &none));
}

int qublk_leave_network(void) { return result_of(unshare(CLONE_NEWNET | CLONE_NEWIPC)); }

int qublk_forbid_core_dump(void) { return result_of(prctl(PR_SET_DUMPABLE, 0UL, 0UL, 0UL, 0UL)); }

// MARK: Rings

// As in the kernel's io_uring.h, which may be older here.
struct ring_rule {
  uint16_t kind;
  uint8_t value;
  uint8_t reserved[13];
};
enum { RULE_OPERATION = 1, RULE_FLAGS = 2, REGISTER_RESTRICTIONS = 11 };

int qublk_restrict_rings(void) {
  // Those of Sources/Uring/SubmissionEntry.swift, and what liburing uses to wait: no-op, fsync, read and write of
  // registered buffers, timeouts, fallocate, read, write, commands of drivers, ftruncate.
  static const uint8_t operations[] = {0, 3, 4, 5, 11, 12, 17, 22, 23, 46, 55};
  enum { COUNT = sizeof operations };
  struct {
    uint16_t flags;
    uint16_t count;
    uint32_t reserved[3];
    struct ring_rule rules[COUNT + 1];
  } order = {.count = COUNT + 1};
  _Static_assert(sizeof(struct ring_rule) == 16, "io_uring ABI");
  for (int i = 0; i < COUNT; i++) order.rules[i] = (struct ring_rule){RULE_OPERATION, operations[i], {0}};
  // IOSQE_FIXED_FILE and IOSQE_BUFFER_SELECT.
  order.rules[COUNT] = (struct ring_rule){RULE_FLAGS, 1 << 0 | 1 << 5, {0}};
  return result_of(syscall(SYS_io_uring_register, -1, REGISTER_RESTRICTIONS, &order, 1));
}

// MARK: Files

// As in the kernel's landlock.h, which may be older here.
struct landlock_ruleset {
  uint64_t files;
  uint64_t network;
  uint64_t scopes;
};
struct __attribute__((packed)) landlock_path {
  uint64_t rights;
  int32_t parent;
};
enum { LANDLOCK_VERSION_FLAG = 1, LANDLOCK_PATH_RULE = 1, LANDLOCK_TCP = 3, LANDLOCK_ABSTRACT_SOCKETS = 1 };

// The rights to files of a version: bits 0 to 12 at first, then one each for links across directories, truncation
// and ioctl.
static uint64_t file_rights(int version) {
  int bits = version >= 5 ? 16 : version >= 3 ? 15 : version >= 2 ? 14 : 13;
  return (1ULL << bits) - 1;
}

int qublk_landlock_version(void) {
  long version = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_VERSION_FLAG);
  return version < 0 ? -errno : (int)version;
}

int qublk_landlock_begin(int version) {
  struct landlock_ruleset rules = {.files = file_rights(version)};
  size_t size = 8;
  if (version >= 4) rules.network = LANDLOCK_TCP, size = 16;
  if (version >= 6) rules.scopes = LANDLOCK_ABSTRACT_SOCKETS, size = 24;
  long descriptor = syscall(SYS_landlock_create_ruleset, &rules, size, 0);
  return descriptor < 0 ? -errno : (int)descriptor;
}

int qublk_landlock_allow(int rules, int version, const char *path, uint64_t rights) {
  struct landlock_path rule = {.rights = rights & file_rights(version)};
  rule.parent = open(path, O_PATH | O_CLOEXEC);
  if (rule.parent < 0) return -errno;
  int result = result_of(syscall(SYS_landlock_add_rule, rules, LANDLOCK_PATH_RULE, &rule, 0));
  close(rule.parent);
  return result;
}

// Landlock's rules are a thread's. Each thread is told by a signal to bring them into force for itself.
enum { MOST_THREADS = 1024 };
static struct {
  int rules;
  atomic_int error;
  struct {
    int thread;
    atomic_int has_obeyed;
  } members[MOST_THREADS];
  int count;
} order;

static int order_signal(void) { return SIGRTMAX - 1; }

int qublk_landlock_prepare(void) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, order_signal());
  return -pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}

static void obey(int signal) {
  (void)signal;
  int saved = errno, thread = (int)syscall(SYS_gettid);
  if (syscall(SYS_landlock_restrict_self, order.rules, 0) < 0) atomic_store(&order.error, errno);
  for (int i = 0; i < order.count; i++) {
    if (order.members[i].thread == thread) atomic_store(&order.members[i].has_obeyed, 1);
  }
  errno = saved;
}

// Threads that the kernel made for a ring take no signals. They work with the rights of whoever asked the ring.
static int is_ring_worker(int thread) {
  char path[64], text[1024];
  snprintf(path, sizeof path, "/proc/self/task/%d/stat", thread);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return 0;
  ssize_t count = read(fd, text, sizeof text - 1);
  close(fd);
  if (count <= 0) return 0;
  text[count] = 0;
  char *field = strrchr(text, ')');
  unsigned flags = 0;
  enum { PF_IO_WORKER = 0x10 };
  return field && sscanf(field + 1, " %*c %*d %*d %*d %*d %*d %u", &flags) == 1 && flags & PF_IO_WORKER;
}

static int is_known(int thread) {
  for (int i = 0; i < order.count; i++) {
    if (order.members[i].thread == thread) return 1;
  }
  return 0;
}

// Waits until the newest member has obeyed, or is gone.
static int wait_for_newest(int signal) {
  const struct timespec pause = {.tv_nsec = 200000};
  atomic_int *has_obeyed = &order.members[order.count - 1].has_obeyed;
  int thread = order.members[order.count - 1].thread;
  if (syscall(SYS_tgkill, getpid(), thread, signal) < 0) return errno == ESRCH ? 0 : -errno;
  for (int looks = 0; looks < 100000; looks++) {
    if (atomic_load(has_obeyed)) return 0;
    if (syscall(SYS_tgkill, getpid(), thread, 0) < 0 && errno == ESRCH) return 0;
    nanosleep(&pause, NULL);
  }
  return -ETIMEDOUT;
}

// Tells all threads but the caller that have not been told; the number of those, or -errno.
static int tell_others(int signal) {
  DIR *tasks = opendir("/proc/self/task");
  if (!tasks) return -errno;
  int own = (int)syscall(SYS_gettid), told = 0, error = 0;
  for (struct dirent *entry; error == 0 && (entry = readdir(tasks));) {
    int thread = atoi(entry->d_name);
    if (thread <= 0 || thread == own || is_known(thread) || is_ring_worker(thread)) continue;
    if (order.count == MOST_THREADS) {
      error = -E2BIG;
      break;
    }
    order.members[order.count].thread = thread;
    atomic_store(&order.members[order.count].has_obeyed, 0);
    order.count++;
    told++;
    error = wait_for_newest(signal);
  }
  closedir(tasks);
  return error < 0 ? error : told;
}

int qublk_landlock_enter(int rules) {
  int signal = order_signal();
  struct sigaction action = {.sa_handler = obey, .sa_flags = SA_RESTART}, before;
  order.rules = rules;
  order.count = 0;
  atomic_store(&order.error, 0);
  sigfillset(&action.sa_mask);
  if (sigaction(signal, &action, &before) < 0) return -errno;
  // A thread may start another one before it obeys: until a look finds no new one.
  int told;
  do {
    told = tell_others(signal);
  } while (told > 0 && atomic_load(&order.error) == 0);
  // After a failure the signal may still be on its way, and must not end the process.
  if (told == 0) sigaction(signal, &before, NULL);
  if (told < 0) return told;
  if (atomic_load(&order.error)) return -atomic_load(&order.error);
  return result_of(syscall(SYS_landlock_restrict_self, rules, 0));
}
