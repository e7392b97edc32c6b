#include "cublk.h"
