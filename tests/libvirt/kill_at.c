/* Preloaded into libvirtd: ends or stops it at one chosen point of what it does.
 *
 * The point is one line in the file $PIVOTD_KILL_AT/point, read again at each step, so that it can be set while libvirtd
 * runs:
 *
 *     ACTION WHEN WHAT PATTERN SINCE COUNT DELAY_MS
 *
 * ACTION is kill (SIGKILL) or stop (SIGSTOP); WHEN is before or after; WHAT is command (a line written to a QEMU monitor)
 * or rename (of a file, by its new name). The point is the COUNTth step whose text contains PATTERN, counted from the
 * first command that contains SINCE ("-": from the beginning), and DELAY_MS later. Every step is a line of
 * $PIVOTD_KILL_AT/steps: what libvirtd did, in its order, and where it ended.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define STEP_LENGTH_MAX 300

static ssize_t (*real_write)(int, const void *, size_t);
static int (*real_rename)(const char *, const char *);
static int in_libvirtd;
static char point_path[4096], steps_path[4096];
static int since_seen, count;

struct point {
	char action[8], when[8], what[8], pattern[200], since[64];
	int count, delay_ms;
};

__attribute__((constructor)) static void begin(void)
{
	const char *directory = getenv("PIVOTD_KILL_AT");
	char name[32] = "";

	real_write = (ssize_t (*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
	real_rename = (int (*)(const char *, const char *))dlsym(RTLD_NEXT, "rename");
	int file = open("/proc/self/comm", O_RDONLY | O_CLOEXEC);
	if (file >= 0) {
		if (read(file, name, sizeof name - 1) < 0)
			name[0] = 0;
		close(file);
	}
	/* libvirtd hands its environment to QEMU and to its hooks. */
	in_libvirtd = directory && (!strncmp(name, "libvirtd", 8) || !strncmp(name, "virtqemud", 9));
	snprintf(point_path, sizeof point_path, "%s/point", directory ? directory : "");
	snprintf(steps_path, sizeof steps_path, "%s/steps", directory ? directory : "");
}

static void note(const char *what, const char *text, size_t length)
{
	char line[STEP_LENGTH_MAX + 32];
	int used = snprintf(line, sizeof line, "%s %.*s", what, length > STEP_LENGTH_MAX ? STEP_LENGTH_MAX : (int)length, text);

	for (int i = 0; i < used; i++)
		if (line[i] == '\n' || line[i] == '\r')
			line[i] = ' ';
	line[used++] = '\n';
	int file = open(steps_path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
	if (file >= 0) {
		if (real_write(file, line, used) < 0)
			abort();
		close(file);
	}
}

static int asked(struct point *point)
{
	FILE *file = fopen(point_path, "re");

	if (!file)
		return 0;
	int fields = fscanf(file, "%7s %7s %7s %199s %63s %d %d", point->action, point->when, point->what, point->pattern,
			    point->since, &point->count, &point->delay_ms);
	fclose(file);
	return fields == 7;
}

static void step(int after, const char *what, const char *text, size_t length)
{
	struct point point;

	if (!asked(&point)) {
		since_seen = count = 0;
		return;
	}
	int from_beginning = !strcmp(point.since, "-");
	if (!after && !from_beginning && !strcmp(what, "command") && memmem(text, length, point.since, strlen(point.since)))
		since_seen = 1;
	if (strcmp(point.what, what) || !memmem(text, length, point.pattern, strlen(point.pattern)))
		return;
	if (!after && (since_seen || from_beginning))
		count++;
	if (count < point.count || strcmp(point.when, after ? "after" : "before"))
		return;
	usleep(point.delay_ms * 1000);
	note(point.action, text, length);
	unlink(point_path);
	/* A SIGSTOP for the process may go to another thread, and this one gets on meanwhile. */
	if (strcmp(point.action, "stop"))
		kill(getpid(), SIGKILL);
	else
		raise(SIGSTOP);
}

ssize_t write(int file, const void *text, size_t length)
{
	if (!in_libvirtd || !memmem(text, length, "\"execute\"", 9))
		return real_write(file, text, length);
	note("command", text, length);
	step(0, "command", text, length);
	ssize_t written = real_write(file, text, length);
	step(1, "command", text, length);
	return written;
}

int rename(const char *from, const char *to)
{
	if (!in_libvirtd)
		return real_rename(from, to);
	note("rename", to, strlen(to));
	step(0, "rename", to, strlen(to));
	int result = real_rename(from, to);
	step(1, "rename", to, strlen(to));
	return result;
}
