/* One arena: a new model takes the place of the last one. */

#include "trainer.h"

extern unsigned char __heap_base;
static unsigned long top;

void memory_reset(void) { top = 0; }

/* Room for so many floats or ints, zeroed, on a 16-byte boundary, with one vector to spare behind it. */
void *memory(int floats) {
    if (!top) top = ((unsigned long)&__heap_base + 15) & ~15ul;
    void *found = (void *)top;
    unsigned long bytes = ((unsigned long)floats * 4 + 31) & ~15ul, page = 65536;
    top += bytes;
    unsigned long held = __builtin_wasm_memory_size(0) * page;
    if (top > held) __builtin_wasm_memory_grow(0, (top - held + page - 1) / page);
    __builtin_memset(found, 0, bytes);
    return found;
}
