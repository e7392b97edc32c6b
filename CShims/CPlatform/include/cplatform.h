// What Swift cannot import from the C library: futex, thread-local storage, variadic calls.
// Functions that can fail return -errno.
#ifndef QUBLK_CPLATFORM_H
#define QUBLK_CPLATFORM_H

#include <stddef.h>
#include <stdint.h>

// Sleeps while *word == expected; returns on a wake, a signal or a changed value.
void qublk_futex_wait(const void *word, uint32_t expected);
// The same for at most `milliseconds`; returns -ETIMEDOUT when they have passed.
int qublk_futex_wait_for(const void *word, uint32_t expected, uint64_t milliseconds);
// Wakes up to count sleepers on word.
void qublk_futex_wake(const void *word, int count);

// A per-thread pointer: the worker loop that this thread runs, NULL on every other thread.
void *qublk_thread_context(void);
void qublk_set_thread_context(void *context);

// A per-thread word for the lock-rank check of debug builds.
uint64_t qublk_thread_ranks(void);
void qublk_set_thread_ranks(uint64_t ranks);

// What decides at the yield points of debug builds which thread goes on; NULL for nearly all threads.
void *qublk_thread_turns(void);
void qublk_set_thread_turns(void *turns);

// MARK: Threads

// The kernel's id of the calling thread.
int qublk_thread_id(void);
// Names the calling thread, as tools show it; 15 bytes are kept.
void qublk_name_thread(const char *name);
// The number of CPUs that the calling thread may run on.
int qublk_processors(void);
// Binds the calling thread to the CPUs of a mask of `size` bytes.
int qublk_set_affinity(const void *mask, size_t size);
// Sets or clears PR_SET_IO_FLUSHER for the calling thread.
int qublk_set_io_flusher(int on);
// The kernel's flags word of the calling thread, from /proc/thread-self/stat.
int qublk_thread_flags(uint32_t *flags);
// The flags that PR_SET_IO_FLUSHER sets: PF_MEMALLOC_NOIO and PF_LOCAL_THROTTLE.
enum { QUBLK_IO_FLUSHER_FLAGS = 0x00080000 | 0x00100000 };
// Locks all present and future memory as it is touched, never before.
int qublk_lock_memory_on_fault(void);
// Asks for small pages in a mapping.
int qublk_advise_small_pages(void *base, size_t size);
// Gives the pages of private memory back, locked ones too; they read as zeros afterwards.
int qublk_drop_pages(void *start, size_t bytes);

// MARK: Files

int qublk_eventfd(void);
// Opens an existing file with O_CLOEXEC | O_NONBLOCK and then clears O_NONBLOCK, which io_uring would
// read as "never wait"; returns the descriptor. A block device is opened for writing with O_EXCL: the
// kernel then answers EBUSY if it is mounted, swap space, part of another device or opened so by someone
// else, and for whole disks also if that is so of a partition. `held` is for a caller that has the
// device open in this way already.
int qublk_open(const char *path, int read_only, int held);
// Takes hold of a file by name only (O_PATH | O_CLOEXEC), whatever it is; returns the descriptor.
int qublk_open_path(const char *path);
// Switches O_DIRECT.
int qublk_set_direct(int fd, int on);
// Kind of file: 1 regular, 2 block device, 0 something else. Size: of a block device too.
int qublk_file_kind(int fd);
int qublk_file_size(int fd, uint64_t *size);
// What direct I/O needs of memory addresses and of file offsets: 0 if not supported,
// -EOPNOTSUPP if the kernel or the file system does not say.
int qublk_dio_alignment(int fd, uint32_t *memory, uint32_t *offset);
// Writes dirty pages of the whole file out and waits; promises nothing about durability.
int qublk_write_back(int fd);
int qublk_fallocate(int fd, int mode, uint64_t offset, uint64_t length);
enum {
  QUBLK_FALLOC_KEEP_SIZE = 1,
  QUBLK_FALLOC_PUNCH_HOLE = 2,
  QUBLK_FALLOC_ZERO_RANGE = 16,
  // Linux 6.17: allocates and zeroes, by a command of the device that moves no data.
  QUBLK_FALLOC_WRITE_ZEROES = 128,
};
// Whether the file lies in tmpfs.
int qublk_is_in_memory(int fd);

// Whether files of the file system can share storage with each other, so that a copy moves no bytes.
int qublk_can_share(int fd);
// The next data, or the next hole, at or behind an offset; a negative errno: -ENXIO if there is none.
int64_t qublk_next_data(int fd, uint64_t offset);
// Copies up to `count` bytes from file to file, which may share them afterwards; returns how many.
int64_t qublk_copy_range(int from, uint64_t from_offset, int to, uint64_t to_offset, uint64_t count);
int64_t qublk_next_hole(int fd, uint64_t offset);

// Whether fd is a block device that takes discards (queue/discard_max_bytes in sysfs); 0 if it is not known.
int qublk_discards(int fd);

// Has the file system not copy an empty file's data on write (btrfs); -errno where it cannot.
int qublk_set_nocow(int fd);
// Has the file system allocate so many bytes of an empty file at once (XFS); -errno where it cannot.
int qublk_set_extent_size(int fd, uint32_t bytes);

#endif
