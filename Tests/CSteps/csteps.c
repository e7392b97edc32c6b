#define _GNU_SOURCE
#include "csteps.h"

#include <errno.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

static pid_t stepped;

static void child(void (*work)(void *), void *context) {
  if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) != 0) _exit(1);
  raise(SIGSTOP);
  alarm(60);
  work(context);
  // Not exit(): what the parent has registered is the parent's.
  _exit(0);
}

// Whether the child has stopped, by itself or behind an instruction.
static int is_stopped(int *status) {
  while (waitpid(stepped, status, 0) < 0) {
    if (errno != EINTR) return 0;
  }
  return WIFSTOPPED(*status);
}

long qublk_single_step(void (*work)(void *), void (*look)(void *), void *context) {
  int status = 0;
  stepped = fork();
  if (stepped == 0) child(work, context);
  if (stepped < 0 || !is_stopped(&status)) return -1;
  // A test run that crashes takes the child with it.
  if (ptrace(PTRACE_SETOPTIONS, stepped, NULL, PTRACE_O_EXITKILL) != 0) return -1;
  for (long steps = 0;; steps++) {
    if (ptrace(PTRACE_SINGLESTEP, stepped, NULL, NULL) != 0) return -1;
    if (!is_stopped(&status)) return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? steps : -2;
    if (WSTOPSIG(status) != SIGTRAP) {
      kill(stepped, SIGKILL);
      waitpid(stepped, &status, 0);
      return -2;
    }
    look(context);
  }
}

int qublk_peek(void *target, const void *source, size_t count) {
  struct iovec here = {target, count};
  struct iovec there = {(void *)source, count};
  return process_vm_readv(stepped, &here, 1, &there, 1, 0) == (ssize_t)count ? 0 : -1;
}
