#include "clibdeflate.h"

#include <dlfcn.h>
#include <pthread.h>

// The library's public ABI: these names and types, and 0 for success, are the same in all that have the
// soname libdeflate.so.0: 1.1 and newer.
typedef void *(*make_function)(void);
typedef int (*fill_function)(
    void *decompressor, const void *in, size_t in_size, void *out, size_t out_room,
    size_t *out_size);
typedef void (*free_function)(void *decompressor);

static struct {
  make_function make;
  fill_function fill;
  free_function free;
} library;
static int is_found;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void find(void) {
  void *handle = dlopen("libdeflate.so.0", RTLD_NOW | RTLD_LOCAL);
  if (!handle) return;
  library.make = (make_function)dlsym(handle, "libdeflate_alloc_decompressor");
  library.fill = (fill_function)dlsym(handle, "libdeflate_deflate_decompress");
  library.free = (free_function)dlsym(handle, "libdeflate_free_decompressor");
  is_found = library.make && library.fill && library.free;
  // Once found, it stays for as long as the process does.
  if (!is_found) dlclose(handle);
}

int qublk_libdeflate_is_available(void) {
  pthread_once(&once, find);
  return is_found;
}

void *qublk_libdeflate_make(void) {
  return qublk_libdeflate_is_available() ? library.make() : NULL;
}

void qublk_libdeflate_free(void *decompressor) { library.free(decompressor); }

int qublk_libdeflate_fill(
    void *decompressor, const void *source, size_t count, void *target, size_t room) {
  // Without a place for the size of the output, anything but `room` bytes is no success.
  return library.fill(decompressor, source, count, target, room, NULL) == 0;
}
