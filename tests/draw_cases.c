/* Draws what standard input asks for, and writes it to standard output: for processors on which no
 * Python runs.  First comes the normal table, then cases: a Job, Rows, and the bytes they take.
 * With a count of 0 the bytes that follow are words, which are mapped in place. */

#include <stdio.h>
#include <stdlib.h>

#include "draw.c"

int main(int argc, char **argv) {
    static uint32_t columns[ROWS * COLUMNS];
    const int set = argc > 1 ? atoi(argv[1]) : SCALAR;
    if (!fanin_has(set) || fread(columns, sizeof columns, 1, stdin) != 1) return 2;
    fanin_table(columns);
    Job job;
    Rows rows;
    uint64_t size;
    while (fread(&job, sizeof job, 1, stdin) == 1) {
        if (fread(&rows, sizeof rows, 1, stdin) != 1 || fread(&size, sizeof size, 1, stdin) != 1)
            return 3;
        char *room = calloc(size, 1);
        if (room == NULL) return 4;
        if (rows.count) {
            Task task = {job, rows, room, 0};
            fanin_write(&task, 1, 3, set);
        } else {
            if (fread(room, size, 1, stdin) != 1) return 3;
            if (fanin_map(&job, (uint32_t *)room, size / 4, set)) return 5;
        }
        fwrite(room, size, 1, stdout);
        free(room);
    }
    return 0;
}
