// libdeflate, where it is installed: looked for at run time, never linked. What it cannot do, zlib does.
#ifndef QUBLK_CLIBDEFLATE_H
#define QUBLK_CLIBDEFLATE_H

#include <stddef.h>

// Whether the library has been found. The first call, on any thread, looks for it; all others ask no more.
int qublk_libdeflate_is_available(void);

// A decompressor, for one thread at a time; NULL if there is no library or no memory.
void *qublk_libdeflate_make(void);
void qublk_libdeflate_free(void *decompressor);

// Whether `source` begins with a whole raw deflate stream of exactly `room` bytes, which are in
// `target` then. Else target holds anything.
int qublk_libdeflate_fill(
    void *decompressor, const void *source, size_t count, void *target, size_t room);

#endif
