// What Swift cannot import from liburing: ring-pointer barriers, macros, 128-byte SQEs.
#ifndef QUBLK_CURING_H
#define QUBLK_CURING_H

// First, because liburing.h defines _XOPEN_SOURCE, which gives glibc's fd_set a member name other
// than the one that Swift's Glibc module has seen.
#include <stdint.h>
#include <sys/select.h>

#include <liburing.h>
#include <string.h>

// Sets the ring up with the best flags that the kernel takes, from deferred task work down to
// none at all; returns 0 or -errno. `sqe128` asks for 128-byte SQEs, `tells_work` for
// qublk_ring_has_news to know of task work, too.
int qublk_ring_init(
    struct io_uring *ring, unsigned entries, unsigned cq_entries, int sqe128, int tells_work);

// Whether an enter that does not wait would bring completions, or there are some: a look at memory.
static inline int qublk_ring_has_news(const struct io_uring *ring) {
  return io_uring_smp_load_acquire(ring->cq.ktail) != *ring->cq.khead ||
         (__atomic_load_n(ring->sq.kflags, __ATOMIC_RELAXED) &
             (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW));
}

// Lets the processor's other thread, or its power management, know of a loop that waits.
static inline void qublk_relax(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// The next free SQE, NULL when the queue is full.
static inline struct io_uring_sqe *qublk_ring_next(struct io_uring *ring) {
  return io_uring_get_sqe(ring);
}

static inline unsigned qublk_ring_unsubmitted(const struct io_uring *ring) {
  return io_uring_sq_ready(ring);
}

// The number of completions that can be read now, and the first one's position.
static inline unsigned qublk_cq_available(const struct io_uring *ring, unsigned *head) {
  *head = *ring->cq.khead;
  return io_uring_smp_load_acquire(ring->cq.ktail) - *head;
}

static inline const struct io_uring_cqe *qublk_cq_at(const struct io_uring *ring, unsigned head) {
  return &ring->cq.cqes[head & *ring->cq.kring_mask];
}

static inline void qublk_cq_advance(struct io_uring *ring, unsigned count) {
  io_uring_smp_store_release(ring->cq.khead, *ring->cq.khead + count);
}

// Submits what is queued, waits for `wait` completions (0: only runs pending task work);
// returns the number submitted or -errno.
static inline int qublk_ring_enter(struct io_uring *ring, unsigned wait) {
  return wait ? io_uring_submit_and_wait(ring, wait) : io_uring_submit_and_get_events(ring);
}

// Registers `entries` (a power of two) page-aligned slots of 16 bytes as the ring of provided buffers of
// `group`; returns 0 or -errno.
static inline int qublk_ring_add_group(
    struct io_uring *ring, unsigned short group, void *slots, unsigned entries) {
  struct io_uring_buf_reg reg;
  memset(&reg, 0, sizeof reg);
  reg.ring_addr = (uint64_t)(uintptr_t)slots;
  reg.ring_entries = entries;
  reg.bgid = group;
  return io_uring_register_buf_ring(ring, &reg, 0);
}

// Gives the buffer `id` to the kernel.
static inline void qublk_ring_provide(
    void *slots, unsigned entries, void *buffer, unsigned bytes, unsigned short id) {
  struct io_uring_buf_ring *group = slots;
  io_uring_buf_ring_add(group, buffer, bytes, id, io_uring_buf_ring_mask(entries), 0);
  io_uring_buf_ring_advance(group, 1);
}

// Sends one command in a 128-byte SQE and waits for its completion; returns its result, or the
// -errno of the ring itself. `command` has `size` bytes, at most 80, and goes to byte 48 on.
int qublk_ring_command(
    struct io_uring *ring, int fd, uint32_t opcode, const void *command, unsigned size);

#endif
