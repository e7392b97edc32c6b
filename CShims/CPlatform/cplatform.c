#define _GNU_SOURCE
#include "cplatform.h"

#include <linux/futex.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <unistd.h>

void qublk_futex_wait(const void *word, uint32_t expected) {
  syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, NULL, NULL, 0);
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
