/* Stands in for a QEMU that its guest has conquered: it is started as QEMU is, and tries what an attacker would. Compiled by
 * confinement.rs with ATTACK, an expression that is what a system call returns. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static void *nothing(void *argument) { return argument; }

/* What QEMU may do: a thread. */
static __attribute__((unused)) long thread(void) {
    pthread_t thread;
    errno = pthread_create(&thread, NULL, nothing, NULL);
    return errno ? -1 : pthread_join(thread, NULL);
}

static __attribute__((unused)) long execute(const char *path) {
    char *const none[] = {NULL};
    return execve(path, none, none);
}

int main(int count, char **arguments) {
    if (count > 1 && strcmp(arguments[1], "--version") == 0) {
        puts("QEMU emulator version 9.0.0");
        return 0;
    }
    /* At once, since what follows may be the end. */
    dprintf(STDERR_FILENO, "tries. ");
    errno = 0;
    long result = ATTACK;
    dprintf(STDERR_FILENO, "came to %s.", result < 0 ? strerrorname_np(errno) : "pass");
    return 3;
}
