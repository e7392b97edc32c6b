// What Swift cannot import from the C library: futex, thread-local storage, variadic calls.
#ifndef QUBLK_CPLATFORM_H
#define QUBLK_CPLATFORM_H

#include <stdint.h>

// Sleeps while *word == expected; returns on a wake, a signal or a changed value.
void qublk_futex_wait(const void *word, uint32_t expected);
// Wakes up to count sleepers on word.
void qublk_futex_wake(const void *word, int count);

// A per-thread pointer: the queue worker that this thread is, NULL on every other thread.
void *qublk_thread_context(void);
void qublk_set_thread_context(void *context);

// A per-thread word for the lock-rank check of debug builds.
uint64_t qublk_thread_ranks(void);
void qublk_set_thread_ranks(uint64_t ranks);

#endif
