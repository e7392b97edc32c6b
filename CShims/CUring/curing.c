#include "curing.h"

#include <errno.h>

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
  int submitted = io_uring_submit(ring);
  if (submitted < 0) return submitted;
  struct io_uring_cqe *cqe;
  int waited;
  do {
    waited = io_uring_wait_cqe(ring, &cqe);
  } while (waited == -EINTR || waited == -EAGAIN);
  if (waited < 0) return waited;
  int result = cqe->res;
  io_uring_cqe_seen(ring, cqe);
  return result;
}
