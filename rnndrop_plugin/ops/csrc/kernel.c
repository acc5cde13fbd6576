/* All computation for one floating-point type and instruction set. setup.py compiles this file for each. It defines
 *   REAL as float or double (then DOUBLE, too), VECTOR_BYTES as the size of a vector, MOST_ROWS and TRANSPOSED_ROWS as
 *   the heights of the products' tiles, and KERNEL as the name of the structure that library.c reads. */
#include "interface.h"
#include <math.h>
#include <string.h>

#include "functions.h"
#include "layout.h"
#include "products.h"

#include "call.h"
#include "cells.h"
#include "gradients.h"

#include "passes.h"

#include "loss.h"

const struct kernel KERNEL = {forward, backward, loss};
