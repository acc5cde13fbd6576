/* All computation for one floating-point type and instruction set. setup.py compiles this file for each, with
 *   REAL float or double (then DOUBLE, too), VECTOR_BYTES the size of a vector, MOST_ROWS and TRANSPOSED_ROWS the
 *   heights of the products' tiles, and KERNEL the name of what library.c gets. */
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
