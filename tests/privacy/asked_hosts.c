/* Loaded before the C library (LD_PRELOAD): a name that is looked up, or an address that is connected to, beyond this
 * machine is written to the file $ASKED_HOSTS, and fails. Native code passes here too, which Python's audit hooks do not
 * see. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void note(const char *what, const char *whom) {
    const char *path = getenv("ASKED_HOSTS");
    char line[600];
    int length = snprintf(line, sizeof line, "%s %.500s\n", what, whom);
    int file = path ? open(path, O_WRONLY | O_APPEND | O_CREAT, 0644) : -1;
    if (file < 0) return;
    if (write(file, line, length) != length) abort();
    close(file);
}

static int is_ours(const char *name) {
    char own[256] = "";
    unsigned char address[16];
    gethostname(own, sizeof own - 1);
    return !name || !*name || !strcmp(name, "localhost") || !strcmp(name, own)
        || inet_pton(AF_INET, name, address) == 1 || inet_pton(AF_INET6, name, address) == 1;
}

static int stays_here(const struct sockaddr *address) {
    if (address && address->sa_family == AF_INET) {
        unsigned char first = *(const unsigned char *)&((const struct sockaddr_in *)address)->sin_addr;
        return first == 127 || first == 0;
    }
    if (address && address->sa_family == AF_INET6) {
        const struct in6_addr *six = &((const struct sockaddr_in6 *)address)->sin6_addr;
        return IN6_IS_ADDR_LOOPBACK(six) || IN6_IS_ADDR_UNSPECIFIED(six)
            || (IN6_IS_ADDR_V4MAPPED(six) && six->s6_addr[12] == 127);
    }
    return 1;
}

static int refuse(const struct sockaddr *address) {
    char text[INET6_ADDRSTRLEN] = "?";
    const void *number = address->sa_family == AF_INET
        ? (const void *)&((const struct sockaddr_in *)address)->sin_addr
        : (const void *)&((const struct sockaddr_in6 *)address)->sin6_addr;
    inet_ntop(address->sa_family, number, text, sizeof text);
    note("connect", text);
    errno = ENETUNREACH;
    return -1;
}

int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **) =
        dlsym(RTLD_NEXT, "getaddrinfo");
    if (is_ours(name)) return real(name, service, hints, found);
    note("resolve", name);
    return EAI_AGAIN;
}

struct hostent *gethostbyname(const char *name) {
    struct hostent *(*real)(const char *) = dlsym(RTLD_NEXT, "gethostbyname");
    if (is_ours(name)) return real(name);
    note("resolve", name);
    h_errno = TRY_AGAIN;
    return NULL;
}

int connect(int socket, const struct sockaddr *address, socklen_t length) {
    int (*real)(int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "connect");
    return stays_here(address) ? real(socket, address, length) : refuse(address);
}

ssize_t sendto(int socket, const void *data, size_t size, int flags, const struct sockaddr *address, socklen_t length) {
    ssize_t (*real)(int, const void *, size_t, int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "sendto");
    return stays_here(address) ? real(socket, data, size, flags, address, length) : refuse(address);
}
