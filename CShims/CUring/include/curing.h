#ifndef QUBLK_CURING_H
#define QUBLK_CURING_H
#include <liburing.h>
#endif
