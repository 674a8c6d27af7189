/* The yardstick: an epoll server that does one write(2) of the same prepared bytes per delivery.
 *
 *   raw PORT        listens on 127.0.0.1, prints "ready" and serves until it is killed
 *   GET /ws         any websocket upgrade is answered; text is echoed, a ping gets its pong
 *   POST /publish   the body goes to every open websocket as one text frame; answers
 *                   {"sockets": N, "dropped": N}, where a dropped one did not take the whole frame
 *
 * It does as little as a server can: no timeouts, no queues, no validation beyond what keeps it in
 * step. A client that breaks the protocol is disconnected.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "wire.h"

enum { BACKLOG = 4096, EVENTS = 512, INPUT_BYTES = 1 << 16, REQUEST_BYTES = 1 << 15 };

struct peer {
    uint8_t *held; /* an unfinished request or frame */
    uint32_t held_bytes;
    uint8_t upgraded;
};

static struct peer *peers; /* by descriptor */
static int top;            /* one more than the highest descriptor seen */
static int poller;

/* SHA-1 (FIPS 180-4) of one message shorter than 120 bytes: the handshake's has 60. */
static uint32_t rotate(uint32_t value, int bits)
{
    return value << bits | value >> (32 - bits);
}

static void sha1_block(uint32_t h[5], const uint8_t *block)
{
    uint32_t w[80], a = h[0], b = h[1], c = h[2], d = h[3], e = h[4];
    for (int i = 0; i < 16; i++)
        w[i] = (uint32_t)block[4 * i] << 24 | (uint32_t)block[4 * i + 1] << 16 |
               (uint32_t)block[4 * i + 2] << 8 | block[4 * i + 3];
    for (int i = 16; i < 80; i++)
        w[i] = rotate(w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16], 1);
    for (int i = 0; i < 80; i++) {
        uint32_t f = i < 20   ? (b & c) | (~b & d)
                     : i < 40 ? b ^ c ^ d
                     : i < 60 ? (b & c) | (b & d) | (c & d)
                              : b ^ c ^ d;
        static const uint32_t k[4] = {0x5a827999, 0x6ed9eba1, 0x8f1bbcdc, 0xca62c1d6};
        uint32_t next = rotate(a, 5) + f + e + k[i / 20] + w[i];
        e = d, d = c, c = rotate(b, 30), b = a, a = next;
    }
    h[0] += a, h[1] += b, h[2] += c, h[3] += d, h[4] += e;
}

static void sha1(const char *text, size_t size, uint8_t digest[20])
{
    uint32_t h[5] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0};
    uint8_t message[128] = {0};
    size_t total = size < 56 ? 64 : 128;
    memcpy(message, text, size);
    message[size] = 0x80;
    message[total - 2] = (uint8_t)(size * 8 >> 8);
    message[total - 1] = (uint8_t)(size * 8);
    for (size_t at = 0; at < total; at += 64)
        sha1_block(h, message + at);
    for (int i = 0; i < 20; i++)
        digest[i] = (uint8_t)(h[i / 4] >> 8 * (3 - i % 4));
}

/* Sec-WebSocket-Accept (RFC 6455, 4.2.2) for a key of 24 characters. */
static void accept_key(const char *key, char out[29])
{
    static const char alphabet[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    char text[61];
    uint8_t digest[21] = {0};
    snprintf(text, sizeof text, "%.24s258EAFA5-E914-47DA-95CA-C5AB0DC85B11", key);
    sha1(text, 60, digest);
    for (int i = 0; i < 7; i++) {
        uint32_t three = (uint32_t)digest[3 * i] << 16 | (uint32_t)digest[3 * i + 1] << 8 |
                         digest[3 * i + 2];
        for (int j = 0; j < 4; j++)
            out[4 * i + j] = alphabet[three >> 6 * (3 - j) & 63];
    }
    out[27] = '='; /* 20 bytes are 27 characters and one of padding */
    out[28] = 0;
}

static void drop(int fd)
{
    free(peers[fd].held);
    memset(&peers[fd], 0, sizeof peers[fd]);
    close(fd);
}

/* Keeps what is left of the input until more comes; false when there is nowhere to keep it. */
static int hold(int fd, const uint8_t *data, size_t size)
{
    struct peer *peer = &peers[fd];
    free(peer->held);
    peer->held = NULL;
    peer->held_bytes = (uint32_t)size;
    if (size >= REQUEST_BYTES)
        return 0;
    if (size) {
        peer->held = need(malloc(size));
        memcpy(peer->held, data, size);
    }
    return 1;
}

static int send_all(int fd, const void *data, size_t size)
{
    return write(fd, data, size) == (ssize_t)size;
}

static int publish(int fd, const uint8_t *body, size_t size)
{
    uint8_t *frame = need(malloc(size + FRAME_HEAD_BYTES));
    size_t head = frame_head(frame, OPCODE_TEXT, size, 0);
    int sockets = 0, dropped = 0;
    memcpy(frame + head, body, size);
    for (int peer = 0; peer < top; peer++) {
        if (!peers[peer].upgraded)
            continue;
        sockets++;
        if (write(peer, frame, head + size) != (ssize_t)(head + size))
            dropped++;
    }
    free(frame);

    char answer[256], json[64];
    int length = snprintf(json, sizeof json, "{\"sockets\": %d, \"dropped\": %d}", sockets, dropped);
    int total = snprintf(answer, sizeof answer,
                         "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                         "Content-Length: %d\r\nConnection: close\r\n\r\n%s",
                         length, json);
    send_all(fd, answer, (size_t)total);
    return 0;
}

static int upgrade(int fd, const char *request)
{
    const char *key = strcasestr(request, "sec-websocket-key:");
    char accept[29], answer[192];
    if (!key)
        return 0;
    key += strlen("sec-websocket-key:");
    key += strspn(key, " ");
    if (strcspn(key, "\r") != 24)
        return 0;
    accept_key(key, accept);
    int total = snprintf(answer, sizeof answer,
                         "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
                         "Connection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n",
                         accept);
    peers[fd].upgraded = 1;
    return send_all(fd, answer, (size_t)total);
}

/* Answers one request. `*used` is what it took of the input, 0 while it is incomplete; false when
 * the connection is to be closed. */
static int on_request(int fd, char *data, size_t size, size_t *used)
{
    char *end = memmem(data, size, "\r\n\r\n", 4);
    *used = 0;
    if (!end)
        return 1;
    size_t head = (size_t)(end - data) + 4, body = 0;
    end[2] = 0;
    char *length = strcasestr(data, "content-length:");
    if (length)
        body = strtoul(length + strlen("content-length:"), NULL, 10);
    end[2] = '\r';
    if (size - head < body)
        return 1;
    *used = head + body;
    if (strncmp(data, "POST /publish ", 14) == 0)
        return publish(fd, (uint8_t *)data + head, body);
    end[2] = 0;
    return upgrade(fd, data);
}

static int on_frame(int fd, uint8_t *payload, const struct frame *frame)
{
    uint8_t answer[FRAME_HEAD_BYTES + 1024];
    if (frame->opcode == OPCODE_CLOSE)
        return 0;
    if (frame->opcode != OPCODE_TEXT && frame->opcode != OPCODE_PING)
        return 1;
    if (frame->length > 1024)
        return 0;
    int opcode = frame->opcode == OPCODE_PING ? OPCODE_PONG : OPCODE_TEXT;
    size_t head = frame_head(answer, opcode, frame->length, 0);
    for (size_t i = 0; i < frame->length; i++)
        answer[head + i] = payload[i] ^ frame->mask[i & 3];
    return send_all(fd, answer, head + frame->length);
}

/* Takes requests and frames out of the input as long as there are whole ones. */
static int on_input(int fd, uint8_t *data, size_t size)
{
    struct frame frame;
    size_t at = 0, used;
    while (!peers[fd].upgraded) {
        if (!on_request(fd, (char *)data + at, size - at, &used))
            return 0;
        if (!used)
            return hold(fd, data + at, size - at);
        at += used;
    }
    while (frame_parse(data + at, size - at, &frame)) {
        if (!on_frame(fd, data + at + frame.head, &frame))
            return 0;
        at += frame.head + frame.length;
    }
    return hold(fd, data + at, size - at);
}

static void on_readable(int fd)
{
    static uint8_t input[REQUEST_BYTES + INPUT_BYTES];
    size_t held = peers[fd].held_bytes;
    if (held)
        memcpy(input, peers[fd].held, held);
    ssize_t got = read(fd, input + held, INPUT_BYTES);
    if (got < 0 && errno == EAGAIN)
        return;
    if (got <= 0 || !on_input(fd, input, held + (size_t)got))
        drop(fd);
}

static void on_connect(int listener, int limit)
{
    int fd, on = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
        if (fd >= limit || epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event) < 0) {
            close(fd);
            continue;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        if (fd >= top)
            top = fd + 1;
    }
}

static int listen_on(int port)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (fd < 0)
        die("socket");
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0)
        die("bind");
    if (listen(fd, BACKLOG) < 0)
        die("listen");
    return fd;
}

int main(int argc, char **argv)
{
    struct epoll_event events[EVENTS];
    if (argc != 2) {
        fprintf(stderr, "usage: raw PORT\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    int limit = (int)descriptor_limit();
    peers = need(calloc((size_t)limit, sizeof *peers));
    int listener = listen_on(atoi(argv[1]));
    poller = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener};
    if (poller < 0 || epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event) < 0)
        die("epoll");
    puts("ready");
    fflush(stdout);
    for (;;) {
        int count = epoll_wait(poller, events, EVENTS, -1);
        if (count < 0 && errno != EINTR)
            die("epoll_wait");
        for (int i = 0; i < count; i++) {
            if (events[i].data.fd == listener)
                on_connect(listener, limit);
            else
                on_readable(events[i].data.fd);
        }
    }
}
