/* What the raw server and the load client share: websocket frames (RFC 6455, 5.2), clocks, sockets.
 *
 * Nothing here allocates or does I/O on a peer's behalf. A caller that passes fewer bytes than a
 * frame needs is told so and tries again with more.
 */
#ifndef BENCH_WIRE_H
#define BENCH_WIRE_H

#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

enum { OPCODE_TEXT = 1, OPCODE_BINARY = 2, OPCODE_CLOSE = 8, OPCODE_PING = 9, OPCODE_PONG = 10 };
enum { FRAME_HEAD_BYTES = 14 };

struct frame {
    int opcode;
    uint8_t mask[4]; /* zeros when the frame is not masked */
    size_t head;     /* bytes before the payload */
    size_t length;   /* bytes of payload */
};

/* Reads a frame's head. Returns 0 while `size` bytes are too few for the head or the payload. */
static inline int frame_parse(const uint8_t *data, size_t size, struct frame *frame)
{
    if (size < 2)
        return 0;
    int masked = data[1] >> 7;
    frame->opcode = data[0] & 15;
    frame->length = data[1] & 127;
    frame->head = 2;
    size_t extended = frame->length == 126 ? 2 : frame->length == 127 ? 8 : 0;
    if (size < 2 + extended + 4 * (size_t)masked)
        return 0;
    if (extended) {
        frame->length = 0;
        for (size_t i = 0; i < extended; i++)
            frame->length = frame->length << 8 | data[2 + i];
        frame->head += extended;
    }
    memset(frame->mask, 0, 4);
    if (masked) {
        memcpy(frame->mask, data + frame->head, 4);
        frame->head += 4;
    }
    return size - frame->head >= frame->length;
}

/* Writes the head of a final frame; a masked one gets the key 0, which leaves the payload as it
 * is. Returns its length, at most FRAME_HEAD_BYTES. */
static inline size_t frame_head(uint8_t *out, int opcode, size_t length, int masked)
{
    size_t at = 2, extended = length > 65535 ? 8 : length > 125 ? 2 : 0;
    out[0] = (uint8_t)(0x80 | opcode);
    out[1] = (uint8_t)(masked << 7 | (extended == 8 ? 127 : extended == 2 ? 126 : (int)length));
    for (size_t i = 0; i < extended; i++)
        out[at++] = (uint8_t)(length >> 8 * (extended - 1 - i));
    if (masked) {
        memset(out + at, 0, 4);
        at += 4;
    }
    return at;
}

/* The clock that Python calls time.monotonic_ns(), so that two processes can compare times. */
static inline int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static inline void die(const char *what)
{
    perror(what);
    exit(1);
}

static inline void *need(void *memory)
{
    if (!memory)
        die("out of memory");
    return memory;
}

static inline void set_nonblocking(int fd)
{
    if (fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) < 0)
        die("fcntl");
}

/* One more than the largest descriptor this process may get. */
static inline size_t descriptor_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
        die("getrlimit");
    return limit.rlim_cur > 1 << 20 ? 1 << 20 : (size_t)limit.rlim_cur;
}

#endif
