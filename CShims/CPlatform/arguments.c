#include "process.h"

static int count;
static char **values;

// Before main, with the words that the kernel left on the stack.
__attribute__((constructor)) static void keep_arguments(int argc, char **argv) {
  count = argc;
  values = argv;
}

int qublk_argument_count(void) { return count; }

const char *qublk_argument(int index) { return index >= 0 && index < count ? values[index] : 0; }
