#define _GNU_SOURCE
#include "cplatform.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

void qublk_futex_wait(const void *word, uint32_t expected) {
  syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, NULL, NULL, 0);
}

int qublk_futex_wait_for(const void *word, uint32_t expected, uint64_t milliseconds) {
  struct timespec limit = {
      .tv_sec = (time_t)(milliseconds / 1000), .tv_nsec = (long)(milliseconds % 1000) * 1000000};
  long result = syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, &limit, NULL, 0);
  return result < 0 && errno == ETIMEDOUT ? -ETIMEDOUT : 0;
}

void qublk_futex_wake(const void *word, int count) {
  syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, count, NULL, NULL, 0);
}

static _Thread_local void *thread_context;

void *qublk_thread_context(void) { return thread_context; }
void qublk_set_thread_context(void *context) { thread_context = context; }

static _Thread_local uint64_t thread_ranks;

uint64_t qublk_thread_ranks(void) { return thread_ranks; }
void qublk_set_thread_ranks(uint64_t ranks) { thread_ranks = ranks; }

static _Thread_local void *thread_turns;

void *qublk_thread_turns(void) { return thread_turns; }
void qublk_set_thread_turns(void *turns) { thread_turns = turns; }

// MARK: Threads

int qublk_thread_id(void) { return (int)syscall(SYS_gettid); }

void qublk_name_thread(const char *name) { prctl(PR_SET_NAME, name, 0UL, 0UL, 0UL); }

int qublk_processors(void) {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
  long online = sysconf(_SC_NPROCESSORS_ONLN);  // more CPUs than the set has room for
  return online > 0 ? (int)online : 1;
}

int qublk_set_affinity(const void *mask, size_t size) {
  return syscall(SYS_sched_setaffinity, 0, size, mask) < 0 ? -errno : 0;
}

#ifndef PR_SET_IO_FLUSHER
#define PR_SET_IO_FLUSHER 57
#endif

int qublk_set_io_flusher(int on) {
  return prctl(PR_SET_IO_FLUSHER, on ? 1UL : 0UL, 0UL, 0UL, 0UL) < 0 ? -errno : 0;
}

int qublk_thread_flags(uint32_t *flags) {
  char text[1024];
  int fd = open("/proc/thread-self/stat", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return -errno;
  ssize_t count = read(fd, text, sizeof text - 1);
  int error = errno;
  close(fd);
  if (count < 0) return -error;
  text[count] = 0;
  // The name, in parentheses, may itself hold parentheses and spaces: the last one closes it.
  // state, ppid, pgrp, session, tty_nr and tpgid come before the flags.
  char *field = strrchr(text, ')');
  unsigned value;
  if (!field || sscanf(field + 1, " %*c %*d %*d %*d %*d %*d %u", &value) != 1) return -EINVAL;
  *flags = value;
  return 0;
}

#ifndef MCL_ONFAULT
#define MCL_ONFAULT 4
#endif

int qublk_lock_memory_on_fault(void) {
  return mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) < 0 ? -errno : 0;
}

int qublk_drop_pages(void *start, size_t bytes) {
  enum { DONTNEED_LOCKED = 24 };  // Linux 5.18
  return madvise(start, bytes, DONTNEED_LOCKED) == 0 ? 0 : madvise(start, bytes, MADV_DONTNEED);
}

int qublk_advise_small_pages(void *base, size_t size) {
  return madvise(base, size, MADV_NOHUGEPAGE) < 0 ? -errno : 0;
}

// MARK: Files

int qublk_eventfd(void) {
  int fd = eventfd(0, EFD_CLOEXEC);
  return fd < 0 ? -errno : fd;
}

static int open_again_after_signals(const char *path, int flags) {
  int fd;
  do {
    fd = open(path, flags);
  } while (fd < 0 && errno == EINTR);
  return fd < 0 ? -errno : fd;
}

static int is_block_device(int error, const struct stat *info) {
  return error == 0 && S_ISBLK(info->st_mode);
}

int qublk_open(const char *path, int read_only, int held) {
  int flags = (read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
  int must_claim = !read_only && !held;
  struct stat info;
  if (must_claim && is_block_device(stat(path, &info), &info)) flags |= O_EXCL;
  int fd = open_again_after_signals(path, flags);
  if (fd < 0) return fd;
  // The name may have become a device's between the two calls.
  if (must_claim && !(flags & O_EXCL) && is_block_device(fstat(fd, &info), &info)) {
    close(fd);
    return -EBUSY;
  }
  int status = fcntl(fd, F_GETFL);
  if (status >= 0) fcntl(fd, F_SETFL, status & ~O_NONBLOCK);
  return fd;
}

int qublk_open_path(const char *path) {
  int fd = open(path, O_PATH | O_CLOEXEC);
  return fd < 0 ? -errno : fd;
}

int qublk_set_direct(int fd, int on) {
  int status = fcntl(fd, F_GETFL);
  if (status < 0) return -errno;
  status = on ? status | O_DIRECT : status & ~O_DIRECT;
  return fcntl(fd, F_SETFL, status) < 0 ? -errno : 0;
}

int qublk_file_kind(int fd) {
  struct stat info;
  if (fstat(fd, &info) < 0) return -errno;
  return S_ISREG(info.st_mode) ? 1 : S_ISBLK(info.st_mode) ? 2 : 0;
}

int qublk_file_size(int fd, uint64_t *size) {
  struct stat info;
  if (fstat(fd, &info) < 0) return -errno;
  if (S_ISBLK(info.st_mode)) return ioctl(fd, BLKGETSIZE64, size) < 0 ? -errno : 0;
  *size = (uint64_t)info.st_size;
  return 0;
}

// statx as the kernel defines it; the C library's own struct may be older than the fields.
struct statx_words {
  uint32_t mask;
  uint8_t skipped[148];
  uint32_t dio_mem_align;
  uint32_t dio_offset_align;
  uint8_t rest[96];
};
_Static_assert(sizeof(struct statx_words) == 256, "statx ABI");
_Static_assert(offsetof(struct statx_words, dio_mem_align) == 152, "statx ABI");
enum { DIOALIGN_MASK = 0x2000 };

int qublk_dio_alignment(int fd, uint32_t *memory, uint32_t *offset) {
  struct statx_words info;
  memset(&info, 0, sizeof info);
  if (syscall(SYS_statx, fd, "", AT_EMPTY_PATH, DIOALIGN_MASK, &info) < 0) return -errno;
  if (!(info.mask & DIOALIGN_MASK)) return -EOPNOTSUPP;
  *memory = info.dio_mem_align;
  *offset = info.dio_offset_align;
  return 0;
}

int qublk_fallocate(int fd, int mode, uint64_t offset, uint64_t length) {
  int result;
  do {
    result = fallocate(fd, mode, (off_t)offset, (off_t)length);
  } while (result < 0 && errno == EINTR);
  return result < 0 ? -errno : 0;
}

static int64_t seek_next(int fd, uint64_t offset, int what) {
  off_t found = lseek(fd, (off_t)offset, what);
  return found < 0 ? -errno : found;
}

int64_t qublk_copy_range(int from, uint64_t from_offset, int to, uint64_t to_offset, uint64_t count) {
  off64_t source = (off64_t)from_offset, target = (off64_t)to_offset;
  if (count > (1u << 30)) count = 1u << 30;
  ssize_t copied = copy_file_range(from, &source, to, &target, count, 0);
  return copied < 0 ? -errno : copied;
}
int64_t qublk_next_data(int fd, uint64_t offset) { return seek_next(fd, offset, SEEK_DATA); }

int64_t qublk_next_hole(int fd, uint64_t offset) { return seek_next(fd, offset, SEEK_HOLE); }

int qublk_is_in_memory(int fd) {
  struct statfs facts;
  return fstatfs(fd, &facts) == 0 && facts.f_type == 0x01021994;  // TMPFS_MAGIC
}

int qublk_can_share(int fd) {
  struct statfs facts;
  if (fstatfs(fd, &facts)) return 0;
  switch ((uint32_t)facts.f_type) {
    case 0x9123683e:  // btrfs
    case 0x58465342:  // XFS
    case 0xca451a4e:  // bcachefs
    case 0x7461636f:  // OCFS2
      return 1;
    default: return 0;
  }
}

int qublk_discards(int fd) {
  struct stat status;
  if (fstat(fd, &status) || !S_ISBLK(status.st_mode)) return 0;
  // A partition has no queue of its own, its disk has.
  static const char *const places[] = {"queue", "../queue"};
  for (size_t i = 0; i < 2; i++) {
    char path[96];
    snprintf(
        path, sizeof path, "/sys/dev/block/%u:%u/%s/discard_max_bytes", major(status.st_rdev),
        minor(status.st_rdev), places[i]);
    FILE *file = fopen(path, "re");
    if (!file) continue;
    unsigned long long bytes = 0;
    int found = fscanf(file, "%llu", &bytes);
    fclose(file);
    return found == 1 && bytes > 0;
  }
  return 0;
}

int qublk_set_nocow(int fd) {
  int flags = 0;
  if (ioctl(fd, FS_IOC_GETFLAGS, &flags)) return -errno;
  flags |= FS_NOCOW_FL;
  return ioctl(fd, FS_IOC_SETFLAGS, &flags) ? -errno : 0;
}

int qublk_set_extent_size(int fd, uint32_t bytes) {
  struct fsxattr attributes;
  memset(&attributes, 0, sizeof attributes);
  if (ioctl(fd, FS_IOC_FSGETXATTR, &attributes)) return -errno;
  attributes.fsx_xflags |= FS_XFLAG_EXTSIZE;
  attributes.fsx_extsize = bytes;
  return ioctl(fd, FS_IOC_FSSETXATTR, &attributes) ? -errno : 0;
}

int qublk_write_back(int fd) {
  unsigned flags =
      SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;
  return sync_file_range(fd, 0, 0, flags) ? -errno : 0;
}
