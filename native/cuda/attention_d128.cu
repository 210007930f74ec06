// Attention's tensor-core kernels for head sizes up to 128.
#include "attention_kernels.h"

LS_DEFINE_ATTENTION(128)
