/* Loaded into a process before libc, it sets its wall clock WRONG_CLOCK_S seconds ahead; its other clocks stay right. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *now)
{
	const char *ahead = getenv("WRONG_CLOCK_S");
	int failed = (int)syscall(SYS_clock_gettime, clock, now);

	if (!failed && clock == CLOCK_REALTIME && ahead)
		now->tv_sec += atol(ahead);
	return failed;
}
