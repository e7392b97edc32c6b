#ifndef QUBLK_CUBLK_H
#define QUBLK_CUBLK_H
#include <stdint.h>
#endif
