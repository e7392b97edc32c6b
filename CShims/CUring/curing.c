#include "curing.h"

#include <errno.h>
#include <unistd.h>

int qublk_ring_init(
    struct io_uring *ring, unsigned entries, unsigned cq_entries, int sqe128, int tells_work) {
  static const unsigned ladder[] = {
      IORING_SETUP_SUBMIT_ALL | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_SINGLE_ISSUER |
          IORING_SETUP_DEFER_TASKRUN,
      IORING_SETUP_SUBMIT_ALL | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_SINGLE_ISSUER,
      IORING_SETUP_SUBMIT_ALL | IORING_SETUP_COOP_TASKRUN,
      0,
  };
  int result = -EINVAL;
  for (unsigned i = 0; i < sizeof ladder / sizeof ladder[0] && result == -EINVAL; i++) {
    struct io_uring_params params;
    memset(&params, 0, sizeof params);
    params.flags = ladder[i] | IORING_SETUP_CLAMP | (sqe128 ? IORING_SETUP_SQE128 : 0);
    // Without cooperative task work, it runs by itself.
    if (tells_work && ladder[i]) params.flags |= IORING_SETUP_TASKRUN_FLAG;
    if (cq_entries) {
      params.flags |= IORING_SETUP_CQSIZE;
      params.cq_entries = cq_entries;
    }
    result = io_uring_queue_init_params(entries, ring, &params);
  }
  return result;
}

int qublk_ring_command(
    struct io_uring *ring, int fd, uint32_t opcode, const void *command, unsigned size) {
  struct io_uring_sqe *sqe = io_uring_get_sqe(ring);
  if (!sqe || size > 80) return -EINVAL;
  memset(sqe, 0, 128);
  sqe->opcode = IORING_OP_URING_CMD;
  sqe->fd = fd;
  sqe->cmd_op = opcode;
  memcpy(sqe->cmd, command, size);
  // Tells this command's completion from those of commands that were given up.
  static _Thread_local uint64_t sequence;
  sqe->user_data = ++sequence;
  int submitted;
  for (int tries = 0;; tries++) {
    submitted = io_uring_submit(ring);
    if (io_uring_sq_ready(ring) == 0) break;
    int may_pass = submitted >= 0 || submitted == -EAGAIN || submitted == -EBUSY ||
                   submitted == -EINTR || submitted == -ENOMEM;
    if (!may_pass || tries == 1000) {
      // The kernel has not taken the entry, and will with the next one: as one that does nothing.
      sqe->opcode = IORING_OP_NOP;
      return submitted < 0 ? submitted : -EAGAIN;
    }
    usleep(1000);
  }
  while (1) {
    struct io_uring_cqe *cqe;
    int waited = io_uring_wait_cqe(ring, &cqe);
    if (waited == -EINTR || waited == -EAGAIN) continue;
    if (waited < 0) return waited;
    int result = cqe->res;
    int is_ours = cqe->user_data == sequence;
    io_uring_cqe_seen(ring, cqe);
    if (is_ours) return result;
  }
}
