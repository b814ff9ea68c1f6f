/* A resolver whose servers do not answer: getaddrinfo() of a name in ".invalid" takes half a minute. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <string.h>
#include <unistd.h>

typedef int look_up(const char *, const char *, const struct addrinfo *, struct addrinfo **);

int getaddrinfo(const char *name, const char *port, const struct addrinfo *hints, struct addrinfo **found) {
    if (name != NULL && strstr(name, ".invalid") != NULL) {
        sleep(30);
        return EAI_AGAIN;
    }
    return ((look_up *)dlsym(RTLD_NEXT, "getaddrinfo"))(name, port, hints, found);
}
