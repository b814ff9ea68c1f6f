/*
 * The least that any program can need to pivot disks: the commands of the pause, one after the other over a plain
 * blocking socket, with no journal and no look at what they did. What it measures is QEMU's own share of a pause.
 *
 *     baseline QMP_SOCKET JOB...
 *
 * Each JOB is a mirror in READY with auto-finalize off. Prints one line of JSON: milliseconds of each step, and the
 * total from right before "stop" is sent to the reply of "cont".
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define LINE_BYTES_MAX (1 << 20)
#define LINES_MAX 10000 /* events read while waiting for one line */
#define JOBS_MAX 16

static int monitor;
static char received[LINE_BYTES_MAX + 1];
static size_t received_bytes;
static char line[LINE_BYTES_MAX + 1];
static char job_ids[JOBS_MAX][160];
static int jobs;
static int pending_seen;

static void fail(const char *what)
{
    fprintf(stderr, "baseline: %s\n", what);
    exit(1);
}

static double now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1e3 + now.tv_nsec / 1e6;
}

/* Put the next message into `line`; QEMU ends each with CR LF. */
static void read_line(void)
{
    char *end;
    while (!(end = memchr(received, '\n', received_bytes))) {
        if (received_bytes == LINE_BYTES_MAX)
            fail("a message is too long");
        ssize_t got = read(monitor, received + received_bytes, LINE_BYTES_MAX - received_bytes);
        if (got <= 0)
            fail("QEMU closed the connection");
        received_bytes += got;
    }
    size_t length = end - received + 1;
    memcpy(line, received, length);
    line[length] = 0;
    received_bytes -= length;
    memmove(received, end + 1, received_bytes);
    if (strstr(line, "\"JOB_STATUS_CHANGE\"") && strstr(line, "\"pending\""))
        for (int i = 0; i < jobs; i++)
            pending_seen += strstr(line, job_ids[i]) != NULL;
}

/* Send one command and return the milliseconds to its reply; events in between are noted. */
static double run(const char *command)
{
    double start = now_ms();
    size_t length = strlen(command);
    if (write(monitor, command, length) != (ssize_t)length)
        fail("cannot write to QEMU");
    for (int i = 0; i < LINES_MAX; i++) {
        read_line();
        if (!strncmp(line, "{\"return\"", 9))
            return now_ms() - start;
        if (!strncmp(line, "{\"error\"", 8))
            fail(line);
    }
    fail("no reply");
    return 0;
}

static double run_on_jobs(const char *command)
{
    double start = now_ms();
    char message[256];
    for (int i = 0; i < jobs; i++) {
        snprintf(message, sizeof message, "{\"execute\": \"%s\", \"arguments\": {%s}}\n", command, job_ids[i]);
        run(message);
    }
    return now_ms() - start;
}

static double wait_pending(void)
{
    double start = now_ms();
    for (int i = 0; i < LINES_MAX && pending_seen < jobs; i++)
        read_line();
    if (pending_seen < jobs)
        fail("a job never became pending");
    return now_ms() - start;
}

int main(int argc, char **argv)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    if (argc < 3 || argc - 2 > JOBS_MAX || strlen(argv[1]) >= sizeof(address.sun_path))
        fail("usage: baseline QMP_SOCKET JOB...");
    strcpy(address.sun_path, argv[1]);
    for (jobs = 0; jobs < argc - 2; jobs++) {
        if (strlen(argv[jobs + 2]) > 128)
            fail("the name of a job is too long");
        snprintf(job_ids[jobs], sizeof job_ids[jobs], "\"id\": \"%s\"", argv[jobs + 2]);
    }
    monitor = socket(AF_UNIX, SOCK_STREAM, 0);
    if (connect(monitor, (struct sockaddr *)&address, sizeof address))
        fail("cannot connect");
    read_line(); /* the greeting */
    run("{\"execute\": \"qmp_capabilities\"}\n");

    double start = now_ms();
    double stop_ms = run("{\"execute\": \"stop\"}\n");
    double complete_ms = run_on_jobs("job-complete");
    double pending_ms = wait_pending();
    double finalize_ms = run_on_jobs("job-finalize");
    double query_ms = run("{\"execute\": \"query-block\"}\n");
    double cont_ms = run("{\"execute\": \"cont\"}\n");
    double total_ms = now_ms() - start;

    printf("{\"stop_ms\": %.3f, \"job_complete_ms\": %.3f, \"pending_ms\": %.3f, \"job_finalize_ms\": %.3f, "
           "\"query_block_ms\": %.3f, \"cont_ms\": %.3f, \"total_ms\": %.3f}\n",
           stop_ms, complete_ms, pending_ms, finalize_ms, query_ms, cont_ms, total_ms);
    return 0;
}
