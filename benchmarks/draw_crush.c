/* TestU01 on words from standard input.
 *
 *     apt install libtestu01-0-dev      (Debian, non-free)
 *     cc -O3 -I/usr/include/testu01 -o draw_crush benchmarks/draw_crush.c \
 *         -ltestu01 -ltestu01probdist -ltestu01mylib -lm
 *     python benchmarks/draw_statistics.py elements | ./draw_crush small
 *     python benchmarks/draw_statistics.py names | ./draw_crush crush reversed
 *
 * The first argument names the battery: small, crush or big.  TestU01 looks at the upper bits of a
 * word above all; "reversed" shows it the lower ones there.
 */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bbattery.h"
#include "swrite.h"
#include "unif01.h"

enum { ROOM = 1 << 16 };

static uint32_t words[ROOM];
static size_t at, count;
static int reversed;

static unsigned int next(void) {
    if (at == count) {
        at = 0;
        count = fread(words, sizeof *words, ROOM, stdin);
        if (count == 0) {
            fprintf(stderr, "draw_crush: the stream has ended before the battery\n");
            exit(1);
        }
    }
    uint32_t word = words[at++];
    if (!reversed) return word;
    word = (word >> 1 & 0x55555555u) | (word & 0x55555555u) << 1;
    word = (word >> 2 & 0x33333333u) | (word & 0x33333333u) << 2;
    word = (word >> 4 & 0x0F0F0F0Fu) | (word & 0x0F0F0F0Fu) << 4;
    return __builtin_bswap32(word);
}

int main(int argc, char **argv) {
    reversed = argc > 2 && strcmp(argv[2], "reversed") == 0;
    swrite_Basic = FALSE; /* the summary alone */
    unif01_Gen *draw = unif01_CreateExternGenBits(reversed ? "fanin, reversed" : "fanin", next);
    const char *battery = argc > 1 ? argv[1] : "";
    if (strcmp(battery, "small") == 0)
        bbattery_SmallCrush(draw);
    else if (strcmp(battery, "crush") == 0)
        bbattery_Crush(draw);
    else if (strcmp(battery, "big") == 0)
        bbattery_BigCrush(draw);
    else {
        fprintf(stderr, "usage: draw_crush small|crush|big [reversed] < words\n");
        return 2;
    }
    unif01_DeleteExternGenBits(draw);
    return 0;
}
