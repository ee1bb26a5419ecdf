/* The UAPI headers of the host without an architecture of their own, so that
 * every machine generates the same objects. */
#include <asm-generic/bitsperlong.h>
