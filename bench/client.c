/* The load client: N websocket connections in one epoll loop, driven by lines on standard input.
 *
 *   client [-p PATH] [-s HELLO] [-b] PORT SOCKETS TOKENS READY
 *     PATH    what is asked for in the upgrade; else /ws
 *     HELLO   the first message of each connection, sent after the upgrade; -b: all that is sent
 *             goes in binary frames (binary frames that come are always read as text frames are)
 *     TOKENS  a file with one bearer token per line (one per connection), or "-" for none
 *     READY   text that a frame must contain before its connection counts as connected, such as
 *             "type":"welcome"; "-" when the upgrade itself is enough
 *
 * Commands, one at a time; each is answered by one line of JSON (times are CLOCK_MONOTONIC, ns):
 *   connect IN_FLIGHT SECONDS           closes what is open, all at once; opens every connection
 *   expect COUNT EACH SECONDS MARKER    says {"event":"armed"}, then counts frames that contain
 *                                       MARKER until COUNT connections had EACH of them
 *   script FILE IN_FLIGHT SECONDS MARKER  FILE has lines "connection payload"; sends each and waits
 *                                       for a verdict: a frame with MARKER wins, one with
 *                                       "type":"offer.lost" or "type":"error" loses
 *   echo SOCKETS SECONDS MARKER PAYLOAD sends PAYLOAD on so many connections, and again whenever a
 *                                       frame with MARKER (any, if it is "-") comes back, until the
 *                                       time is over; ############ in it becomes a rising number,
 *                                       \r\n at its end the end of a line
 * MARKER and PAYLOAD may not contain spaces. End of input ends the program.
 *
 * "spare_ns" is the time between "first_ns" and "last_ns" that the client did not need: in which
 * there was nothing to read (expect, echo), or in which it used no CPU (connect, script).
 * "frames" with MARKER came in so many "reads".
 * Frames are only delimited, never validated; pings are answered at any time, those of Socket.IO
 * and NATS too. A connection that fails or is closed by the server is an error, said in "failed"
 * and "closed" of every answer.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stddef.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "wire.h"

enum { EVENTS = 1024, INPUT_BYTES = 1 << 16, HELD_BYTES = 1 << 20, LINE_BYTES = 1 << 12 };
enum { SOURCE_SOCKETS = 20000 }; /* connections from one loopback address: its ports are finite */
enum { NUMBER_DIGITS = 12 };

#define NUMBER "############" /* so many digits of a payload are counted up */
#define ECHO_GRACE_NS 5000000000LL /* for the answers under way when an echo's time is over */

enum state { IDLE, CONNECTING, UPGRADING, OPEN, READY, GONE };
enum task { NOTHING, CONNECT, EXPECT, SCRIPT, ECHO };

struct connection {
    int fd;
    enum state state;
    uint8_t *held; /* an unfinished answer or frame */
    size_t held_bytes;
    int64_t sent_ns;
    int line;     /* of the script, while its verdict is awaited; else -1 */
    int expect;   /* the number of the `expect` in which it last had a marked frame */
    int received; /* marked frames in it */
};

struct line {
    int connection;
    char *payload;
};

static struct connection *connections;
static int sockets, port, poller;
static char **tokens;
static const char *ready_marker, *path = "/ws", *hello;
static int opcode_sent = OPCODE_TEXT;
static int generation; /* how often everything was connected */
static char failure[256];
static int failed, closed;

/* The command under way. */
static struct {
    enum task kind;
    int number, expected, each, started, done, won, lost, extra, in_flight;
    int64_t begin_ns, deadline_ns, first_ns, last_ns, spare_ns, cpu_ns;
    int64_t *latencies, timed, room; /* `timed` of them, in memory for `room` */
    int64_t frames, reads, sent;
    size_t marked_bytes;
    char marker[LINE_BYTES], payload[LINE_BYTES];
    char *digits; /* where in the payload a rising number stands, if anywhere */
    struct line *lines;
} task;

static void pump(void);

static void fail(struct connection *c, const char *what)
{
    if (!failed++)
        snprintf(failure, sizeof failure, "connection %td: %s", c - connections, what);
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
    c->state = GONE;
}

static void send_frame(struct connection *c, int opcode, const void *payload, size_t length)
{
    uint8_t frame[FRAME_HEAD_BYTES + LINE_BYTES];
    if (length > LINE_BYTES) {
        fail(c, "payload too long");
        return;
    }
    size_t head = frame_head(frame, opcode, length, 1);
    memcpy(frame + head, payload, length);
    if (write(c->fd, frame, head + length) != (ssize_t)(head + length))
        fail(c, "send failed");
}

static int by_value(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static int64_t percentile(int percent)
{
    return task.timed ? task.latencies[(task.timed - 1) * percent / 100] : 0;
}

static void keep_latency(int64_t latency_ns)
{
    if (task.timed == task.room) {
        task.room = task.room ? 2 * task.room : 1 << 16;
        task.latencies = need(realloc(task.latencies, (size_t)task.room * sizeof(int64_t)));
    }
    task.latencies[task.timed++] = latency_ns;
}

static int64_t cpu_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void finish(int timed_out)
{
    static const char *const names[] = {"nothing", "connect", "expect", "script", "echo"};
    int64_t slept_ns = task.last_ns - task.first_ns - (cpu_ns() - task.cpu_ns);
    if (task.kind == CONNECT || task.kind == SCRIPT)
        task.spare_ns = slept_ns > 0 ? slept_ns : 0;
    if (task.timed)
        qsort(task.latencies, (size_t)task.timed, sizeof *task.latencies, by_value);
    printf("{\"event\": \"%s\", \"done\": %d, \"expected\": %d, \"extra\": %d, \"timed_out\": %s, "
           "\"begin_ns\": %lld, \"first_ns\": %lld, \"last_ns\": %lld, \"spare_ns\": %lld, "
           "\"payload_bytes\": %zu, \"frames\": %lld, \"reads\": %lld, ",
           names[task.kind], task.done, task.expected, task.extra, timed_out ? "true" : "false",
           (long long)task.begin_ns, (long long)task.first_ns, (long long)task.last_ns,
           (long long)task.spare_ns, task.marked_bytes, (long long)task.frames,
           (long long)task.reads);
    printf("\"won\": %d, \"lost\": %d, \"p50_ns\": %lld, \"p99_ns\": %lld, ", task.won, task.lost,
           (long long)percentile(50), (long long)percentile(99));
    printf("\"failed\": %d, \"closed\": %d, \"failure\": \"%s\"}\n", failed, closed, failure);
    fflush(stdout);
    for (int i = 0; task.kind == SCRIPT && i < task.expected; i++)
        free(task.lines[i].payload);
    free(task.lines);
    free(task.latencies);
    task.lines = NULL;
    task.latencies = NULL;
    task.kind = NOTHING;
}

static void advance(int64_t now)
{
    if (!task.done++ && !task.first_ns)
        task.first_ns = now;
    task.last_ns = now;
}

static void on_ready(struct connection *c)
{
    c->state = READY;
    if (task.kind != CONNECT)
        return;
    task.in_flight--;
    advance(now_ns());
    pump();
}

static void on_verdict(struct connection *c, int won)
{
    int64_t now = now_ns();
    keep_latency(now - c->sent_ns);
    task.won += won;
    task.lost += !won;
    task.in_flight--;
    c->line = -1;
    advance(now);
    pump();
}

/* Keeps what is left of the input until more comes. */
static void hold(struct connection *c, const uint8_t *data, size_t size)
{
    free(c->held);
    c->held = NULL;
    c->held_bytes = size;
    if (size) {
        c->held = need(malloc(size));
        memcpy(c->held, data, size);
    }
}

/* A frame with the marker, or one of several messages in it. */
static void on_marked(struct connection *c)
{
    if (c->expect != task.number)
        c->received = 0;
    c->expect = task.number;
    c->received++;
    if (!task.frames++)
        task.first_ns = now_ns();
    if (c->received == task.each)
        advance(now_ns());
    task.extra += c->received > task.each;
}

static int contains(const uint8_t *text, size_t length, const char *marker)
{
    return memmem(text, length, marker, strlen(marker)) != NULL;
}

static int is(const uint8_t *text, size_t length, const char *whole)
{
    return length == strlen(whole) && memcmp(text, whole, length) == 0;
}

static void send_echo(struct connection *c)
{
    int64_t number = task.sent++;
    for (int at = NUMBER_DIGITS - 1; task.digits && at >= 0; at--, number /= 10)
        task.digits[at] = (char)('0' + number % 10);
    c->sent_ns = now_ns();
    send_frame(c, opcode_sent, task.payload, strlen(task.payload));
}

static void on_echo(struct connection *c, size_t length)
{
    int64_t now = now_ns();
    task.marked_bytes = length;
    keep_latency(now - c->sent_ns);
    advance(now);
    if (now < task.deadline_ns)
        send_echo(c);
    else
        task.in_flight--;
}

/* NATS puts as many messages into a frame as it has. */
static void on_marked_binary(struct connection *c, const uint8_t *data, size_t length)
{
    const uint8_t *end = data + length, *at;
    while ((at = memmem(data, (size_t)(end - data), task.marker, strlen(task.marker)))) {
        task.marked_bytes = length;
        on_marked(c);
        data = at + strlen(task.marker);
    }
}

static void on_message(struct connection *c, int opcode, const uint8_t *text, size_t length)
{
    if (is(text, length, "2")) {
        send_frame(c, opcode_sent, "3", 1);
    } else if (is(text, length, "PING\r\n")) {
        send_frame(c, opcode_sent, "PONG\r\n", strlen("PONG\r\n"));
    } else if (c->state == OPEN) {
        if (contains(text, length, ready_marker))
            on_ready(c);
    } else if (task.kind == EXPECT && opcode == OPCODE_BINARY) {
        on_marked_binary(c, text, length);
    } else if (task.kind == EXPECT && contains(text, length, task.marker)) {
        task.marked_bytes = length;
        on_marked(c);
    } else if (task.kind == SCRIPT && c->line >= 0) {
        int won = contains(text, length, task.marker);
        if (won || contains(text, length, "\"type\":\"offer.lost\"") ||
            contains(text, length, "\"type\":\"error\""))
            on_verdict(c, won);
    } else if (task.kind == ECHO && c - connections < task.expected &&
               (is((uint8_t *)task.marker, strlen(task.marker), "-") ||
                contains(text, length, task.marker))) {
        on_echo(c, length);
    }
}

static void on_frames(struct connection *c, uint8_t *data, size_t size)
{
    struct frame frame;
    size_t at = 0;
    int64_t before = task.frames;
    while (c->state != GONE && frame_parse(data + at, size - at, &frame)) {
        const uint8_t *payload = data + at + frame.head;
        if (frame.opcode == OPCODE_TEXT || frame.opcode == OPCODE_BINARY)
            on_message(c, frame.opcode, payload, frame.length);
        else if (frame.opcode == OPCODE_PING)
            send_frame(c, OPCODE_PONG, payload, frame.length);
        at += frame.head + frame.length;
    }
    task.reads += task.frames > before;
    hold(c, data + at, c->state == GONE ? 0 : size - at);
}

static void on_upgrade(struct connection *c, uint8_t *data, size_t size)
{
    uint8_t *end = memmem(data, size, "\r\n\r\n", 4);
    char status[33];
    if (!end) {
        hold(c, data, size);
        return;
    }
    if (memcmp(data, "HTTP/1.1 101", 12) != 0) {
        snprintf(status, sizeof status, "%.*s", (int)strcspn((char *)data, "\r\""), data);
        fail(c, status);
        return;
    }
    c->state = OPEN;
    if (hello)
        send_frame(c, opcode_sent, hello, strlen(hello));
    if (strcmp(ready_marker, "-") == 0)
        on_ready(c);
    on_frames(c, end + 4, size - (size_t)(end + 4 - data));
}

static void on_readable(struct connection *c)
{
    static uint8_t input[HELD_BYTES + INPUT_BYTES];
    size_t held = c->held_bytes;
    if (held > HELD_BYTES) {
        fail(c, "frame too long");
        return;
    }
    if (held)
        memcpy(input, c->held, held);
    ssize_t got = read(c->fd, input + held, INPUT_BYTES);
    if (got < 0 && errno == EAGAIN)
        return;
    if (got <= 0) {
        closed += c->state == READY;
        fail(c, got ? strerror(errno) : "closed by the server");
        return;
    }
    if (c->state == UPGRADING)
        on_upgrade(c, input, held + (size_t)got);
    else
        on_frames(c, input, held + (size_t)got);
}

static void send_upgrade(struct connection *c)
{
    char request[LINE_BYTES], bearer[LINE_BYTES / 2] = "";
    int error = 0;
    socklen_t size = sizeof error;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    if (getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0 || error) {
        fail(c, strerror(error));
        return;
    }
    if (tokens)
        snprintf(bearer, sizeof bearer, "Authorization: Bearer %s\r\n", tokens[c - connections]);
    int length = snprintf(request, sizeof request,
                          "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\n"
                          "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                          "Sec-WebSocket-Key: ZGlzcGF0Y2ggYmVuY2htYQ==\r\n%s\r\n",
                          path, port, bearer);
    if (write(c->fd, request, (size_t)length) != length) {
        fail(c, "upgrade not sent");
        return;
    }
    c->state = UPGRADING;
    epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &event);
}

static void open_connection(struct connection *c)
{
    struct sockaddr_in server = {.sin_family = AF_INET,
                                 .sin_port = htons((uint16_t)port),
                                 .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr_in source = {.sin_family = AF_INET};
    struct epoll_event event = {.events = EPOLLOUT, .data.ptr = c};
    /* Each time from other addresses: the ports of those that were just closed still wait. */
    int addresses = (sockets - 1) / SOURCE_SOCKETS + 1;
    int on = 1, address = generation * addresses + (int)(c - connections) / SOURCE_SOCKETS;
    source.sin_addr.s_addr = htonl(INADDR_LOOPBACK + (uint32_t)address);
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (c->fd < 0) {
        fail(c, strerror(errno));
        return;
    }
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    c->state = CONNECTING;
    if (bind(c->fd, (struct sockaddr *)&source, sizeof source) < 0 ||
        (connect(c->fd, (struct sockaddr *)&server, sizeof server) < 0 && errno != EINPROGRESS) ||
        epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &event) < 0)
        fail(c, strerror(errno));
}

static void close_all(void)
{
    for (struct connection *c = connections; c < connections + sockets; c++) {
        if (c->fd >= 0)
            close(c->fd);
        free(c->held);
        memset(c, 0, sizeof *c);
        c->fd = c->line = -1;
    }
    generation++;
}

/* Starts as much as may be in flight. */
static void pump(void)
{
    while ((task.kind == CONNECT || task.kind == SCRIPT) && !failed &&
           task.in_flight < task.number && task.started < task.expected) {
        int at = task.started++;
        task.in_flight++;
        if (task.kind == CONNECT) {
            open_connection(&connections[at]);
            continue;
        }
        struct connection *c = &connections[task.lines[at].connection];
        if (c->line >= 0 || c->state != READY) {
            fail(c, "a line of the script found it busy or closed");
            return;
        }
        c->line = at;
        c->sent_ns = now_ns();
        send_frame(c, opcode_sent, task.lines[at].payload, strlen(task.lines[at].payload));
    }
}

static int read_script(const char *name)
{
    char text[LINE_BYTES];
    FILE *file = fopen(name, "r");
    int count = 0, connection, at;
    if (!file)
        die(name);
    while (fgets(text, sizeof text, file)) {
        text[strcspn(text, "\n")] = 0;
        if (sscanf(text, "%d %n", &connection, &at) != 1 || connection < 0 ||
            connection >= sockets) {
            fprintf(stderr, "client: bad line in %s: %s\n", name, text);
            exit(2);
        }
        task.lines = need(realloc(task.lines, (size_t)(count + 1) * sizeof *task.lines));
        task.lines[count].connection = connection;
        task.lines[count++].payload = need(strdup(text + at));
    }
    fclose(file);
    return count;
}

static void begin(const char *command)
{
    static int expects;
    char file[LINE_BYTES];
    double seconds = 0;
    memset(&task, 0, sizeof task);
    if (sscanf(command, "connect %d %lf", &task.number, &seconds) == 2) {
        task.kind = CONNECT;
        task.expected = sockets;
    } else if (sscanf(command, "expect %d %d %lf %4095s", &task.expected, &task.each, &seconds,
                      task.marker) == 4) {
        task.kind = EXPECT;
        task.number = ++expects;
    } else if (sscanf(command, "script %4095s %d %lf %4095s", file, &task.number, &seconds,
                      task.marker) == 4) {
        task.kind = SCRIPT;
        task.expected = read_script(file);
    } else if (sscanf(command, "echo %d %lf %4095s %4095s", &task.expected, &seconds, task.marker,
                      task.payload) == 4 &&
               task.expected <= sockets) {
        task.kind = ECHO;
        task.digits = strstr(task.payload, NUMBER);
        char *end = strstr(task.payload, "\\r\\n");
        if (end)
            strcpy(end, "\r\n");
    } else {
        fprintf(stderr, "client: cannot do: %s\n", command);
        exit(2);
    }
    task.begin_ns = now_ns();
    task.cpu_ns = cpu_ns();
    task.deadline_ns = task.begin_ns + (int64_t)(seconds * 1e9);
    if (task.kind == CONNECT)
        close_all();
    if (task.kind == EXPECT) {
        puts("{\"event\": \"armed\"}");
        fflush(stdout);
    }
    for (; task.kind == ECHO && task.in_flight < task.expected; task.in_flight++)
        send_echo(&connections[task.in_flight]);
    pump();
}

/* Reads one command; false at the end of the input. */
static int on_command(void)
{
    static char text[4 * LINE_BYTES];
    static size_t size;
    ssize_t got = read(STDIN_FILENO, text + size, sizeof text - 1 - size);
    if (got <= 0)
        return 0;
    size += (size_t)got;
    text[size] = 0;
    char *end = strchr(text, '\n');
    if (end) {
        *end = 0;
        begin(text);
        size = 0;
    }
    return 1;
}

static void check(void)
{
    int64_t now = now_ns();
    if (task.kind == NOTHING)
        return;
    if (task.kind == ECHO ? task.in_flight == 0 : task.done >= task.expected)
        finish(0);
    else if (failed || now >= task.deadline_ns + (task.kind == ECHO ? ECHO_GRACE_NS : 0))
        finish(!failed);
}

static void read_tokens(const char *name)
{
    char text[LINE_BYTES];
    FILE *file = fopen(name, "r");
    if (!file)
        die(name);
    tokens = need(calloc((size_t)sockets, sizeof *tokens));
    for (int i = 0; i < sockets; i++) {
        if (!fgets(text, sizeof text, file)) {
            fprintf(stderr, "client: %s has only %d tokens\n", name, i);
            exit(2);
        }
        text[strcspn(text, "\n")] = 0;
        tokens[i] = need(strdup(text));
    }
    fclose(file);
}

/* Deliveries are waited for without sleeping once the first one is there: waking a sleeping client
 * would cost the server's core an interrupt per delivery. What that spins away is `spare_ns`: how
 * far the client is from being the bottleneck. */
static void serve(void)
{
    struct epoll_event events[EVENTS];
    for (;;) {
        int hot = task.kind == ECHO || (task.kind == EXPECT && task.frames > 0);
        int64_t asked_ns = hot ? now_ns() : 0;
        int count = epoll_wait(poller, events, EVENTS, hot ? 0 : task.kind == NOTHING ? -1 : 20);
        if (count < 0 && errno != EINTR)
            die("epoll_wait");
        if (hot && count == 0)
            task.spare_ns += now_ns() - asked_ns;
        for (int i = 0; i < count; i++) {
            struct connection *c = events[i].data.ptr;
            if (!c && !on_command())
                return;
            if (c && c->state == CONNECTING)
                send_upgrade(c);
            else if (c && c->state != GONE)
                on_readable(c);
        }
        check();
    }
}

int main(int argc, char **argv)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    int option;
    while ((option = getopt(argc, argv, "p:s:b")) != -1) {
        if (option == 'p')
            path = optarg;
        else if (option == 's')
            hello = optarg;
        else if (option == 'b')
            opcode_sent = OPCODE_BINARY;
    }
    if (argc - optind != 4) {
        fprintf(stderr, "usage: client [-p PATH] [-s HELLO] [-b] PORT SOCKETS TOKENS READY\n");
        return 2;
    }
    argv += optind;
    signal(SIGPIPE, SIG_IGN);
    port = atoi(argv[0]);
    sockets = atoi(argv[1]);
    ready_marker = argv[3];
    connections = need(calloc((size_t)sockets, sizeof *connections));
    for (int i = 0; i < sockets; i++)
        connections[i].fd = connections[i].line = -1;
    if (strcmp(argv[2], "-") != 0)
        read_tokens(argv[2]);
    poller = epoll_create1(0);
    if (poller < 0 || epoll_ctl(poller, EPOLL_CTL_ADD, STDIN_FILENO, &event) < 0)
        die("epoll");
    serve();
    return 0;
}
