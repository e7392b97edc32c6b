// A process that is stopped behind each of its instructions.
#pragma once

#include <stddef.h>

// Forks, has the child run `work(context)` one instruction at a time, and calls `look(context)` here behind each, between
// which qublk_peek() reads the child's memory.
//
// `work` must not depend on other threads, which the child does not have. Returns the number of instructions; -1 if the child
// could not be traced; -2 if it ended otherwise than by returning from `work`, or took more than a minute.
long qublk_single_step(
    void (*_Nonnull work)(void *_Nonnull), void (*_Nonnull look)(void *_Nonnull), void *_Nonnull context);

// Copies `count` bytes at `source` in the child's memory to `target`; 0 if it could.
int qublk_peek(void *_Nullable target, const void *_Nonnull source, size_t count);
